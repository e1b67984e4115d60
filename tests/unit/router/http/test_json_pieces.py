"""JSON in pieces is the same JSON."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from support.api import Bench, chat, complete, error_of

from router.http.exchange import Exchange
from router.http.json_pieces import PIECE_BYTES, respond_json
from router.runtime import ApiLimits

leaves = st.none() | st.integers(-9, 9) | st.text(max_size=3)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner)
)


async def sent(value: Any) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    scope = {"type": "http"}
    await respond_json(Exchange(scope, receive, send, limits=ApiLimits()), value, {"x-a": "b"})
    return messages


@pytest.mark.anyio
async def test_a_large_list_is_sent_in_small_pieces() -> None:
    value = {"choices": [{"index": 0, "logprobs": {"content": list(range(100_000))}}]}
    start, *bodies = await sent(value)
    assert (b"x-a", b"b") in start["headers"]
    assert max(len(body["body"]) for body in bodies) < PIECE_BYTES + 1024
    assert [body["more_body"] for body in bodies] == [True] * (len(bodies) - 1) + [False]
    assert json.loads(b"".join(body["body"] for body in bodies)) == value


@given(values)
def test_any_value_is_the_same_json(value: Any) -> None:
    _, *bodies = asyncio.run(sent(value))
    assert json.loads(b"".join(body["body"] for body in bodies)) == value


@pytest.mark.anyio
async def test_an_answer_too_large_to_collect_is_refused_before_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.openai.prepare.MAX_ALTERNATIVES", 4 * 50 * 21 - 1)
    large = {"n": 4, "max_tokens": 50}
    async with bench.client() as client:
        answer = await chat(client, **large, logprobs=True, top_logprobs=20)
        assert answer.status_code == 400 and error_of(answer)["param"] == "max_tokens"
        assert "top_logprobs" in error_of(answer)["message"]
        answer = await complete(client, **large, logprobs=20)
        assert answer.status_code == 400 and "(1 + logprobs)" in error_of(answer)["message"]
        assert (await chat(client, **large)).status_code == 200
        streamed = await chat(client, **large, logprobs=True, top_logprobs=20, stream=True)
        assert streamed.status_code == 200


@pytest.mark.anyio
async def test_an_answer_that_grows_too_large_ends_its_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.http.openai.json_answer.MAX_ALTERNATIVES", 3)
    async with bench.client() as client:
        answer = await chat(client, logprobs=True, top_logprobs=5)
    assert answer.status_code == 400 and error_of(answer)["param"] == "max_tokens"
    assert bench.dispatcher.num_active == 0
