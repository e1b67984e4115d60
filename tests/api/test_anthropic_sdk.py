"""The anthropic SDK, unmodified, against the router's app on a real socket."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from support.api import MODEL, Bench, make_bench
from support.eventually import soon

from protocol.errors import CapacityError
from router.requests.events import NoWorkers, RequestFailed

pytestmark = pytest.mark.anyio
TEMPLATE = (
    "{# calls are <tool_call>, thoughts <think> </think> #}"
    "{% for m in messages %}[{{ m.role }} {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}]{% endfor %}"
    "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{{ enable_thinking }}"
)
HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALLING = '<think>hm</think>I look.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}'
CUT = '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "day": "to'


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, chat_template=TEMPLATE)


@pytest.fixture
async def sdk(bench: Bench) -> AsyncIterator[AsyncAnthropic]:
    async with (
        bench.serving(api_keys=("key",)) as url,
        AsyncAnthropic(base_url=url, api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


async def ask(sdk: AsyncAnthropic, **fields: Any) -> anthropic.types.Message:
    given = {"model": MODEL, "max_tokens": 120, "messages": HI, **fields}
    answer: anthropic.types.Message = await sdk.messages.create(**given)
    return answer


async def test_a_message(sdk: AsyncAnthropic) -> None:
    answer = await ask(sdk, system="be kind", metadata={"user_id": "me"}, service_tier="auto")
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].text == "Hello there."  # type: ignore[union-attr]
    assert (answer.role, answer.stop_reason) == ("assistant", "end_turn")
    assert answer.usage.input_tokens > 0 < answer.usage.output_tokens
    assert answer.id.startswith("msg_")


async def test_a_streamed_message_comes_to_the_same(bench: Bench, sdk: AsyncAnthropic) -> None:
    bench.dispatcher.reply = CALLING + "</tool_call>"
    bench.dispatcher.cached_tokens = 2
    whole = await ask(sdk, tools=[WEATHER])
    async with sdk.messages.stream(
        model=MODEL, max_tokens=120, messages=HI, tools=[WEATHER]
    ) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(texts) == "I look."
    kinds = ["thinking", "text", "tool_use"]
    assert [block.type for block in final.content] == kinds == [b.type for b in whole.content]
    assert final.content[0] == whole.content[0]
    assert final.content[2].input == whole.content[2].input == {"city": "Rome"}  # type: ignore[union-attr]
    assert final.stop_reason == whole.stop_reason == "tool_use"
    assert final.usage.cache_read_input_tokens == 2
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_a_tools_result_goes_back_with_the_answer_as_it_came(
    bench: Bench, sdk: AsyncAnthropic
) -> None:
    bench.dispatcher.reply = CALLING + "</tool_call>"
    said = await ask(sdk, tools=[WEATHER])
    use = said.content[-1]
    assert use.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    history = [
        *HI,
        {"role": "assistant", "content": said.content},
        {"role": "user", "content": [result]},
    ]
    await ask(sdk, messages=history, tools=[WEATHER])
    prompt = bench.tokenizer.decode(bench.dispatcher.requests[-1].token_ids)
    called = '[assistant I look.{"name": "weather", "arguments": {"city": "Rome"}}]'
    assert prompt.startswith(f"[user hi]{called}[tool sunny]<weather>")


async def test_a_call_that_was_cut_is_what_there_is_of_it(
    bench: Bench, sdk: AsyncAnthropic
) -> None:
    bench.dispatcher.reply = CUT
    num_tokens = len(bench.tokenizer.encode(CUT))
    fields: Any = {"model": MODEL, "max_tokens": num_tokens, "messages": HI, "tools": [WEATHER]}
    whole = await sdk.messages.create(**fields)
    async with sdk.messages.stream(**fields) as stream:
        final = await stream.get_final_message()
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    assert final.content[0].input == whole.content[0].input == {"city": "Rome"}  # type: ignore[union-attr]


async def test_tokens_are_counted(bench: Bench, sdk: AsyncAnthropic) -> None:
    counted = await sdk.messages.count_tokens(model=MODEL, messages=HI, tools=[WEATHER])
    await ask(sdk, tools=[WEATHER])
    assert counted.input_tokens == len(bench.dispatcher.requests[0].token_ids)


async def test_models(sdk: AsyncAnthropic) -> None:
    listed = [model async for model in sdk.models.list()]
    assert [model.id for model in listed] == [MODEL]
    assert (await sdk.models.retrieve(MODEL)).display_name == MODEL
    with pytest.raises(anthropic.NotFoundError):
        await sdk.models.retrieve("other")


@pytest.mark.parametrize(
    ("failure", "raised", "kind"),
    [
        (CapacityError("full", retry_after_s=0.5), anthropic.RateLimitError, "rate_limit_error"),
        (NoWorkers("none"), anthropic.InternalServerError, "overloaded_error"),
        (RequestFailed("late", code="deadline"), anthropic.InternalServerError, "timeout_error"),
    ],
)
async def test_failures_are_the_sdks_own_errors(
    bench: Bench,
    sdk: AsyncAnthropic,
    failure: Exception,
    raised: type[anthropic.APIStatusError],
    kind: str,
) -> None:
    bench.dispatcher.failures[-1] = failure
    with pytest.raises(raised) as error:
        await ask(sdk)
    assert error.value.body["error"]["type"] == kind  # type: ignore[index]
    assert error.value.request_id


async def test_refusals_are_the_sdks_own_errors(bench: Bench, sdk: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="image") as image:
        await ask(sdk, messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}])
    details = image.value.body["error"]["details"]  # type: ignore[index]
    assert details["param"] == "messages[0].content[0].type"
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .*\d+ tokens > 255"):
        await ask(sdk, messages=[{"role": "user", "content": "hi " * 300}])
    with pytest.raises(anthropic.AuthenticationError):
        await ask(sdk.with_options(api_key="wrong"))
    with pytest.raises(anthropic.NotFoundError):
        await ask(sdk, model="other")
    with pytest.raises(anthropic.BadRequestError, match="container"):
        await ask(sdk, extra_body={"container": "x"})


async def test_a_bearer_token_opens_too(sdk: AsyncAnthropic) -> None:
    bearer = AsyncAnthropic(base_url=str(sdk.base_url), auth_token="key", api_key=None)
    async with bearer:
        assert (await ask(bearer)).stop_reason == "end_turn"


async def test_a_full_router_is_asked_again(bench: Bench, sdk: AsyncAnthropic) -> None:
    bench.dispatcher.failures[-1] = CapacityError("full", retry_after_s=0.01)
    bench.dispatcher.num_failures_left = 1
    assert (await ask(sdk.with_options(max_retries=2))).stop_reason == "end_turn"
    assert len(bench.dispatcher.requests) == 2


async def test_a_failure_in_a_stream_is_raised(bench: Bench, sdk: AsyncAnthropic) -> None:
    bench.dispatcher.failures[2] = RequestFailed("bad", code="internal")
    stream = await sdk.messages.create(model=MODEL, max_tokens=9, messages=HI, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="api_error"):
        _ = [event async for event in stream]


async def test_a_stream_that_its_client_closes_is_aborted(
    bench: Bench, sdk: AsyncAnthropic
) -> None:
    bench.dispatcher.hold_at = 2
    stream = await sdk.messages.create(model=MODEL, max_tokens=9, messages=HI, stream=True)
    assert (await anext(aiter(stream))).type == "message_start"
    await stream.close()
    await soon(lambda: bench.dispatcher.num_aborted == 1, what="aborted")
