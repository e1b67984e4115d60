from typing import Any

import httpx
import pytest
from support.api import Bench, chat, complete, events_of

from router.requests.events import RequestFailed

pytestmark = pytest.mark.anyio


def text_of(events: list[Any], index: int = 0) -> str:
    """What a client shows of one choice."""
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    mine = [choice for choice in choices if choice["index"] == index]
    return "".join(
        one["text"] if "text" in one else one["delta"].get("content", "") for one in mine
    )


async def test_chat_chunks_have_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    events = events_of(await chat(client, stream=True))
    assert events.pop() == "[DONE]"
    common = {"object": "chat.completion.chunk", "model": "tiny", "system_fingerprint": None}
    for event in events:
        assert event.items() >= common.items()
        assert set(event) == {*common, "id", "created", "choices"}
        assert event["id"] == events[0]["id"]
    choices = [choice for event in events for choice in event["choices"]]
    plain = {"index": 0, "logprobs": None, "finish_reason": None}
    first = {"role": "assistant", "content": "", "refusal": None}
    assert choices[0] == plain | {"delta": first}
    ending: dict[str, object] = {"delta": {}, "finish_reason": "stop", "stop_reason": None}
    assert choices[-1] == plain | ending
    for choice in choices[1:-1]:
        assert set(choice["delta"]) == {"content"} and choice["delta"]["content"]
    assert text_of(events) == "Hello there."


async def test_choices_begin_in_order_whichever_has_the_first_token(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = "word " * 20
    events = events_of(await chat(client, stream=True, n=4))[:-1]
    begun = [event["choices"][0] for event in events[:4]]
    assert [choice["index"] for choice in begun] == [0, 1, 2, 3]
    assert all(choice["delta"]["role"] == "assistant" for choice in begun)


async def test_completion_chunks_have_exactly_openais_shape(client: httpx.AsyncClient) -> None:
    events = events_of(await complete(client, stream=True, max_tokens=3))
    assert events.pop() == "[DONE]"
    for event in events:
        assert event["object"] == "text_completion"
        assert set(event["choices"][0]) - {"stop_reason"} == {
            "index",
            "text",
            "logprobs",
            "finish_reason",
        }
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["length"]


async def test_usage_comes_in_a_last_chunk_without_choices(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.cached_tokens = 3
    whole = (await chat(client)).json()["usage"]
    events = events_of(await chat(client, stream=True, stream_options={"include_usage": True}))
    assert events.pop() == "[DONE]"
    last = events.pop()
    assert (last["choices"], last["usage"]) == ([], whole)
    assert whole["prompt_tokens_details"] == {"cached_tokens": 3}
    assert all(event["usage"] is None for event in events)


async def test_usage_in_every_chunk_counts_the_tokens_so_far(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.cached_tokens = 3
    whole = (await chat(client)).json()["usage"]
    asked = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(await chat(client, stream=True, stream_options=asked))
    assert events.pop() == "[DONE]"
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[0] == 0 and counts[1] == 1 and counts == sorted(counts)
    assert counts[-1] == whole["completion_tokens"]
    for event in events:
        usage = event["usage"]
        assert usage["total_tokens"] == whole["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": None, "continuous_usage_stats": True}},
    ],
)
async def test_no_usage_unless_asked_for(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    events = events_of(await chat(client, stream=True, **fields))
    assert all("usage" not in event for event in events[:-1])


async def test_streamed_text_is_the_whole_answers_text(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = 'naïve 🙂🙃 "quoted"\n\\ back 東京\x00\x7f</script> end'
    whole = (await chat(client)).json()["choices"][0]["message"]["content"]
    assert whole == bench.dispatcher.reply
    assert text_of(events_of(await chat(client, stream=True))) == whole


@pytest.mark.parametrize("stop", ["there", "o the", ["zzz", "o t"]])
async def test_a_stop_string_ends_the_stream_before_it(
    client: httpx.AsyncClient, stop: str | list[str]
) -> None:
    events = events_of(await chat(client, stream=True, stop=stop))
    first = stop if isinstance(stop, str) else stop[-1]
    assert text_of(events) == "Hello there.".split(first)[0]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_every_choice_is_streamed_with_its_index(client: httpx.AsyncClient) -> None:
    events = events_of(await complete(client, stream=True, prompt=["a", "b"], n=2))
    assert [text_of(events, index) for index in range(4)] == ["Hello there."] * 4
    endings = [event["choices"][0] for event in events[:-1]]
    assert sorted(one["index"] for one in endings if one["finish_reason"]) == [0, 1, 2, 3]


async def test_echo_comes_before_the_first_token(client: httpx.AsyncClient) -> None:
    events = events_of(await complete(client, stream=True, prompt="Say: ", echo=True))
    assert events[0]["choices"][0]["text"] == "Say: "
    assert text_of(events) == "Say: Hello there."


async def test_logprobs_come_with_every_token_even_without_text(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = "🙉"
    whole = (await chat(client, logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]
    events = events_of(await chat(client, stream=True, logprobs=True, top_logprobs=1))
    entries = [
        entry
        for event in events[:-1]
        for choice in event["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert entries == whole["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries[:-1]).decode() == "🙉"


async def test_streamed_completion_logprobs_are_those_of_the_whole(
    client: httpx.AsyncClient,
) -> None:
    whole = (await complete(client, logprobs=2)).json()["choices"][0]["logprobs"]
    events = events_of(await complete(client, stream=True, logprobs=2))
    parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
    for column, values in whole.items():
        assert [value for part in parts if part for value in part[column]] == values


async def test_tokens_without_text_make_no_chunk(bench: Bench, client: httpx.AsyncClient) -> None:
    bench.dispatcher.reply = "🙉"
    events = events_of(await chat(client, stream=True))
    contents = [event["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert contents == ["", "🙉", None]


async def test_an_error_after_the_first_byte_is_an_event_and_the_end(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[2] = RequestFailed("both workers lost", code="source_lost")
    response = await chat(client, stream=True)
    events = events_of(response)
    assert response.status_code == 200
    assert events[-1]["error"]["code"] == "internal_error"
    assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in events


async def test_a_mistake_of_ours_in_a_stream_is_not_silent(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[2] = ZeroDivisionError("secret")
    events = events_of(await chat(client, stream=True))
    assert events[-1]["error"]["code"] == "internal_error"
    assert "secret" not in str(events)
