"""The openai SDK, unmodified, against the Responses API on a real socket."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel
from support.api import MODEL, Bench, make_bench
from support.eventually import soon
from support.redis_server import RedisServer, redis_server
from support.responses import TEMPLATE, WEATHER, prompt_of

from protocol.store.responses import ResponseStore
from router.requests.events import RequestFailed
from router.runtime import KeptResponses

pytestmark = pytest.mark.anyio
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
TOOLS: Any = [WEATHER]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)


@pytest.fixture
async def sdk(bench: Bench, redis: RedisServer) -> AsyncIterator[AsyncOpenAI]:
    store = ResponseStore(redis.address, ttl_s=60, max_bytes=lambda: 1 << 20, deadline_s=2.0)
    kept = KeptResponses(store=store, by_default=False)
    async with (
        bench.serving(api_keys=("key",), kept_responses=kept) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client
    await store.close()


async def test_a_response(sdk: AsyncOpenAI) -> None:
    answer = await sdk.responses.create(model=MODEL, input="hi", instructions="Be brief.")
    assert answer.output_text == "Hello there."
    assert (answer.status, answer.error) == ("completed", None)
    assert answer.usage is not None and answer.usage.output_tokens > 0
    assert answer.usage.input_tokens_details.cached_tokens == 0
    assert valid(answer)


async def test_a_stream_of_events(sdk: AsyncOpenAI) -> None:
    stream = await sdk.responses.create(model=MODEL, input="hi", stream=True)
    events = [event async for event in stream]
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(said) == "Hello there."
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Hello there."
    for event in events:
        assert type(event).model_validate(event.model_dump(), strict=True)


async def test_the_sdks_own_stream_reader(bench: Bench, sdk: AsyncOpenAI) -> None:
    bench.dispatcher.reply = f"<think>So.</think>Well.{CALL}{CALL}"
    async with sdk.responses.stream(model=MODEL, input="hi", tools=TOOLS) as stream:
        deltas: dict[str, str] = {}
        async for event in stream:
            if event.type.endswith(".delta"):
                deltas[event.type] = deltas.get(event.type, "") + getattr(event, "delta", "")
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == [
        *("reasoning", "message", "function_call", "function_call"),
    ]
    assert final.output_text == deltas["response.output_text.delta"] == "Well."
    assert deltas["response.reasoning_text.delta"] == "So."
    assert deltas["response.function_call_arguments.delta"] == '{"city": "Rome"}' * 2
    assert valid(final)


async def test_tools_called_and_answered(bench: Bench, sdk: AsyncOpenAI) -> None:
    bench.dispatcher.reply = f"<think>I look.</think>{CALL}"
    items: Any = [{"role": "user", "content": "Weather?"}]
    first = await sdk.responses.create(model=MODEL, input=items, tools=TOOLS)
    call = next(one for one in first.output if isinstance(one, ResponseFunctionToolCall))
    assert json.loads(call.arguments) == {"city": "Rome"}
    items += first.output
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "warm"})
    bench.dispatcher.reply = "Warm."
    second = await sdk.responses.create(model=MODEL, input=items, tools=TOOLS)
    assert second.output_text == "Warm."
    assert "<think>I look.</think><tool_call>" in prompt_of(bench)
    assert f"tool({call.call_id} weather)\nwarm" in prompt_of(bench)


async def test_parsed_tools_and_what_was_parsed_sent_back(bench: Bench, sdk: AsyncOpenAI) -> None:
    class Weather(BaseModel):
        city: str

    bench.dispatcher.reply = CALL
    tool: Any = openai.pydantic_function_tool(Weather, name="weather")
    flat: Any = {"type": "function", **tool["function"], "strict": False}
    items: Any = [{"role": "user", "content": "Weather?"}]
    parsed = await sdk.responses.parse(model=MODEL, input=items, tools=[flat])
    [call] = parsed.output
    assert isinstance(call, ResponseFunctionToolCall) and call.name == "weather"
    items += [
        *parsed.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "x"},
    ]
    again = await sdk.responses.create(model=MODEL, input=items)
    assert again.status == "completed"


async def test_a_conversation_by_ids(bench: Bench, sdk: AsyncOpenAI) -> None:
    first = await sdk.responses.create(model=MODEL, input="hi", store=True)
    second = await sdk.responses.create(
        model=MODEL, input="more", store=True, previous_response_id=first.id
    )
    assert "hi<|im_end|>" in prompt_of(bench) and "Hello there." in prompt_of(bench)
    listed = [
        item async for item in sdk.responses.input_items.list(second.id, limit=1, order="asc")
    ]
    assert [item.type for item in listed] == ["message"] * 3
    again = await sdk.responses.retrieve(second.id)
    assert again.output_text == "Hello there." and valid(again)
    with pytest.raises(openai.BadRequestError, match="background"):
        await sdk.responses.cancel(second.id)
    await sdk.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match=second.id) as raised:
        await sdk.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    assert raised.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError) as gone:
        await sdk.responses.retrieve(second.id)
    assert gone.value.code == "response_not_found"


async def test_a_failure_in_a_stream_is_raised(bench: Bench, sdk: AsyncOpenAI) -> None:
    bench.dispatcher.failures[2] = RequestFailed("slow", code="deadline")
    stream = await sdk.responses.create(model=MODEL, input="hi", stream=True)
    with pytest.raises(openai.APIError, match="longer than this server allows"):
        async for _ in stream:
            pass


async def test_a_refusal_names_its_field(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await sdk.responses.create(model=MODEL, input="hi", background=True)
    assert (raised.value.param, raised.value.code) == ("background", "unsupported_parameter")


async def test_a_stream_that_is_closed_ends_its_request(bench: Bench, sdk: AsyncOpenAI) -> None:
    bench.dispatcher.hold_at = 2
    stream = await sdk.responses.create(model=MODEL, input="hi", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await soon(lambda: bench.dispatcher.num_aborted == 1, what="the request is aborted")


def valid(answer: Response) -> bool:
    """Whether it is what the SDK's types say, strictly; its client takes anything."""
    return bool(Response.model_validate_json(answer.model_dump_json(by_alias=True)))
