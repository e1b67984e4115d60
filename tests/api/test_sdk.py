"""The openai SDK, unmodified, against the router's app on a real socket."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from support.api import HI, MODEL, Bench
from support.eventually import soon

from protocol.errors import CapacityError
from router.requests.events import NoWorkers, RequestFailed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sdk(bench: Bench) -> AsyncIterator[AsyncOpenAI]:
    async with (
        bench.serving(api_keys=("key",)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


async def test_a_chat(sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model=MODEL, messages=HI)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None


async def test_a_streamed_chat_with_usage(sdk: AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=50,
    )
    chunks = [chunk async for chunk in stream]
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == "Hello there."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


async def test_the_sdks_own_stream_reader(sdk: AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], n=2
    ) as stream:
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["Hello there."] * 2


async def test_an_answer_goes_back_as_a_message(sdk: AsyncOpenAI) -> None:
    asked = {"role": "user", "content": "hi"}
    said = await sdk.chat.completions.create(model=MODEL, messages=[asked])  # type: ignore[list-item]
    again = [asked, said.choices[0].message, asked]
    answer = await sdk.chat.completions.create(model=MODEL, messages=again)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "Hello there."


async def test_several_choices_stops_and_logprobs(sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        n=3,
        stop=["there"],
        logprobs=True,
        top_logprobs=2,
        seed=1,
        temperature=0,
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello "] * 3
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert len(choice.logprobs.content[0].top_logprobs) == 2


async def test_completions_of_every_kind_of_prompt(sdk: AsyncOpenAI) -> None:
    texts: list[str] = []
    for prompt in ("hi", ["a", "b"], [5, 6], [[5], [6, 7]]):
        answer = await sdk.completions.create(model=MODEL, prompt=prompt, logprobs=1)
        texts += [choice.text for choice in answer.choices]
        assert answer.choices[0].logprobs is not None
    assert texts == ["Hello there."] * 6


async def test_a_streamed_completion(sdk: AsyncOpenAI) -> None:
    stream = await sdk.completions.create(model=MODEL, prompt="hi", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello there."


async def test_extras_go_through_extra_body(sdk: AsyncOpenAI, bench: Bench) -> None:
    await sdk.completions.create(
        model=MODEL, prompt="hi", extra_body={"top_k": 5, "min_tokens": 3, "ignore_eos": True}
    )
    assert bench.dispatcher.requests[0].sampling.top_k == 5


async def test_models(sdk: AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == [MODEL]
    assert (await sdk.models.retrieve(MODEL)).owned_by == "baton"


async def test_headers_of_a_raw_response(sdk: AsyncOpenAI) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        extra_headers={"x-request-id": "mine"},
    )
    assert raw.headers["x-request-id"] == "mine"
    assert raw.headers["x-baton-route"] == "split; warm prefix"


async def test_errors_arrive_as_the_sdks_own(sdk: AsyncOpenAI, bench: Bench) -> None:
    async def ask(**fields: object) -> None:
        await sdk.completions.create(**{"model": MODEL, "prompt": "hi"} | fields)  # type: ignore[call-overload]

    with pytest.raises(openai.NotFoundError) as missing:
        await ask(model="gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        await ask(temperature=3)
    assert raised.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="suffix: not supported"):
        await ask(suffix="x")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        await sdk.with_options(api_key="wrong").models.list()
    for failure, kind in (
        (CapacityError("full"), openai.RateLimitError),
        (NoWorkers("none"), openai.InternalServerError),
    ):
        bench.dispatcher.failures = {0: failure}
        with pytest.raises(kind):
            await ask()


async def test_a_full_context_is_told_as_clients_look_for_it(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "so long " * 500}]
        )
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
    assert "This model's maximum context length is 256 tokens. However," in str(raised.value)
    assert raised.value.type == "invalid_request_error"


async def test_what_asks_for_nothing_is_served(sdk: AsyncOpenAI) -> None:
    said = {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "why"}
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}, said],
        "store": False,
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "service_tier": "auto",
        "modalities": ["text"],
        "tools": [],
        "response_format": {"type": "text"},
    }
    answer = await sdk.chat.completions.create(model=MODEL, **asked)
    assert answer.choices[0].message.content == "Hello there."


async def test_usage_in_every_chunk(sdk: AsyncOpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await sdk.completions.create(
        model=MODEL, prompt="hi", stream=True, stream_options=options
    )
    usages = [chunk.usage async for chunk in stream]
    assert all(usages) and usages[-1] is not None and usages[-1].completion_tokens > 1


async def test_the_sdk_retries_what_says_retry_after(sdk: AsyncOpenAI, bench: Bench) -> None:
    bench.dispatcher.failures = {0: CapacityError("full", retry_after_s=0.1)}
    bench.dispatcher.num_failures_left = 1
    patient = sdk.with_options(max_retries=2)
    answer = await patient.completions.create(model=MODEL, prompt="hi")
    assert answer.choices[0].text == "Hello there."
    assert len(bench.dispatcher.requests) == 2


async def test_an_error_in_the_stream_reaches_the_reader(sdk: AsyncOpenAI, bench: Bench) -> None:
    bench.dispatcher.failures = {2: RequestFailed("tcp://10.0.0.7:4000 died", code="internal")}
    stream = await sdk.completions.create(model=MODEL, prompt="hi", stream=True)
    with pytest.raises(openai.APIError, match="The request failed"):
        async for _ in stream:
            pass


async def test_a_client_that_leaves_a_stream_aborts_it(sdk: AsyncOpenAI, bench: Bench) -> None:
    bench.dispatcher.hold_at = 2
    stream = await sdk.completions.create(model=MODEL, prompt="hi", stream=True, n=2)
    await anext(aiter(stream))
    assert bench.dispatcher.num_active == 2
    await stream.close()
    await soon(lambda: bench.dispatcher.num_active == 0, what="active")
    assert bench.dispatcher.num_aborted == 2


async def test_a_client_that_times_out_aborts_its_request(sdk: AsyncOpenAI, bench: Bench) -> None:
    bench.dispatcher.hold_at = 0
    with pytest.raises(openai.APITimeoutError):
        await sdk.with_options(timeout=0.2).completions.create(model=MODEL, prompt="hi")
    await soon(lambda: bench.dispatcher.num_aborted == 1, what="aborted")
    assert bench.dispatcher.num_active == 0
