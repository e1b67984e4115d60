import asyncio
import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.api import HI, MODEL, Bench, chat, complete, error_of, make_bench
from support.eventually import soon
from support.fake_dispatcher import BEFORE_PLACED

from protocol.errors import BatonError, CapacityError
from protocol.ids import RequestId
from router.api.errors import ApiError
from router.openai.prepare import prepare_chat
from router.requests.events import NoWorkers, RequestFailed, TooLong

pytestmark = pytest.mark.anyio
SAID = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"max_tokens": 300}, 400, "messages", "context_length_exceeded"),
        ({"n": 129}, 400, "n", None),
        ({"stop_token_ids": [100_000]}, 400, "stop_token_ids[0]", None),
        ({"logit_bias": {"100000": 1}}, 400, "logit_bias", None),
        ({"min_tokens": 5, "max_tokens": 4}, 400, "min_tokens", None),
        ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs", None),
        ({"tools": [1]}, 400, "tools[0]", None),
        ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type", "unsupported_parameter"),
        ({"nonsense": 1}, 400, "nonsense", "unknown_parameter"),
        ({"temperature": "hot"}, 400, "temperature", None),
        ({"chat_template_kwargs": {"max_chars": 9}}, 400, "chat_template_kwargs", None),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", None),
        ({"messages": [{"role": "system", "content": None}]}, 400, "messages[0].content", None),
        (
            {"messages": [{"role": "user", "content": ["Hello"]}]},
            400,
            "messages[0].content[0]",
            None,
        ),
        ({"messages": [HI[0] | {"prefix": True}]}, 400, "messages[0].prefix", None),
        ({"messages": [HI[0], HI[0] | {"partial": True}]}, 400, "messages[1].partial", None),
        ({"messages": [SAID | {"partial": True}, *HI]}, 400, "messages[0].partial", None),
        ({"continue_final_message": True}, 400, "continue_final_message", None),
        ({"messages": HI * 300}, 400, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 300}]},
            400,
            "messages",
            "context_length_exceeded",
        ),
        (
            {"messages": [{"role": "user", "content": "x " * 300}]},
            400,
            "messages",
            "context_length_exceeded",
        ),
        ({"stop": "x" * (1 << 22), "n": 128}, 400, "stop", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_chat_request_reaches_no_worker(
    bench: Bench,
    client: httpx.AsyncClient,
    fields: dict[str, Any],
    status: int,
    param: str,
    code: str | None,
    stream: bool,
) -> None:
    response = await chat(client, stream=stream, **fields)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param)
    assert code is None or error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert bench.dispatcher.requests == []


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([5, -1], "prompt[1]"),
        ([[5], [6, 10**9]], "prompt[1][1]"),
        (["a", ""], "prompt[1]"),
        (["a"] * 129, "prompt"),
    ],
)
async def test_a_bad_prompt_reaches_no_worker(
    bench: Bench, client: httpx.AsyncClient, prompt: object, param: str
) -> None:
    response = await complete(client, prompt=prompt)
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert bench.dispatcher.requests == []


OVERFLOW = re.compile(
    r"This model's maximum context length is (\d+) tokens\. However, you requested (?:at least )?"
    r"(\d+) tokens \((\d+) in the (\S+), (\d+) in the completion\)\. Please reduce the length of"
)
"""What clients look for in the message, besides its code."""


async def test_a_prompt_over_the_context_is_told_the_numbers(client: httpx.AsyncClient) -> None:
    error = error_of(await complete(client, prompt=[5] * 250, max_tokens=10))
    told = OVERFLOW.match(error["message"])
    assert told and told.groups() == ("256", "260", "250", "prompt", "10")
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")


async def test_a_prompt_of_5000_tokens_in_2048_is_refused_in_openais_sentence(
    tmp_path: Path,
) -> None:
    bench = make_bench(tmp_path, max_context_tokens=2048)
    content = bench.tokenizer.decode([40] * 5000)
    async with bench.client() as client:
        response = await chat(client, messages=[{"role": "user", "content": content}])
        for other in (
            await complete(client, prompt=[5] * 5000),
            await client.post("/tokenize", json={"prompt": "x" * 100_000}),
        ):
            assert error_of(other)["code"] == "context_length_exceeded"
            assert OVERFLOW.match(error_of(other)["message"])
    error = error_of(response)
    told = OVERFLOW.match(error["message"])
    assert response.status_code == 400 and told and int(told[3]) >= 2048
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


async def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    bench: Bench, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("tokenised")

    monkeypatch.setattr(bench.tokenizer, "encode", encode)
    word = "x" * 1_000_000
    for response in (
        await chat(client, messages=[{"role": "user", "content": word}]),
        await complete(client, prompt=word),
        await complete(client, prompt=[word, "hi"]),
        await client.post("/tokenize", json={"prompt": word}),
        await client.post("/tokenize", json={"messages": [{"role": "user", "content": word}]}),
    ):
        assert (response.status_code, error_of(response)["code"]) == (
            400,
            "context_length_exceeded",
        )


async def test_prompts_times_choices_are_bounded_in_tokens(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, max_context_tokens=100_000)
    async with bench.client() as client:
        response = await complete(client, prompt=[5] * 50_000, n=100)
        assert error_of(response)["param"] == "n"
        assert "4194304" in error_of(response)["message"]
        assert (await complete(client, prompt=[5] * 50_000, n=2)).status_code == 200


async def test_the_whole_context_may_be_used(client: httpx.AsyncClient) -> None:
    response = await complete(client, prompt=[5] * 250, max_tokens=6)
    assert response.status_code == 200


async def test_a_prompt_that_leaves_little_room_gets_what_is_left(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    await complete(client, prompt=[5] * 250)
    assert bench.dispatcher.requests[0].sampling.max_tokens == 6


async def test_the_context_is_that_of_the_workers_if_it_is_shorter(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.models.context = 100
    assert (await complete(client, prompt=[5] * 101)).status_code == 400


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    async with make_bench(tmp_path / "plain", chat_template=None).client() as client:
        response = await chat(client)
        assert response.status_code == 400
        assert "no chat template" in error_of(response)["message"]
        assert (await complete(client)).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"\xff\xfe"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_malformed_json_is_a_clear_error(
    client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    response = await client.post(path, content=body)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")


async def chunks(num: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(num):
        yield b" " * size


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
async def test_an_oversized_body_is_refused_announced_or_not(bench: Bench, path: str) -> None:
    async with bench.client(max_body_bytes=1000) as client:
        for content in (b" " * 1001, chunks(11, 100)):
            response = await client.post(path, content=content)
            assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


WHY = "decode-0 at tcp://10.0.0.7:40001: OSError: [Errno 111]"
"""As reasons are that the log and the trace have."""


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (CapacityError(WHY, retry_after_s=2.5), 429, "overloaded", "3"),
        (NoWorkers(WHY), 503, "no_workers", "1"),
        (TooLong(WHY), 400, "context_length_exceeded", None),
        (RequestFailed(WHY, code="too_long"), 400, "context_length_exceeded", None),
        (RequestFailed(WHY, code="deadline"), 504, "deadline_exceeded", None),
        (RequestFailed(WHY, code="grammar"), 400, "grammar_exhausted", None),
        (RequestFailed(WHY, code="overloaded"), 408, "client_too_slow", None),
        (RequestFailed(WHY, code="source_lost", retryable=True), 503, "unavailable", "1"),
        (RequestFailed(WHY, code="internal"), 500, "internal_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("index", [BEFORE_PLACED, 0])
async def test_a_failure_before_the_first_token_is_a_plain_status(
    bench: Bench,
    client: httpx.AsyncClient,
    failure: BatonError,
    status: int,
    code: str,
    retry_after: str | None,
    stream: bool,
    index: int,
) -> None:
    bench.dispatcher.failures[index] = failure
    response = await chat(client, stream=stream)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code)
    assert response.headers.get("retry-after") == retry_after
    assert not re.search(r"decode-0|tcp|10\.0|Errno|OSError", str(error))


async def test_a_failure_of_one_choice_ends_the_others(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[2] = NoWorkers("gone")
    response = await chat(client, n=3)
    assert response.status_code == 503
    assert bench.dispatcher.num_active == 0


async def test_a_mistake_of_ours_is_a_500_in_openais_shape(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[1] = ZeroDivisionError("secret")
    response = await chat(client)
    assert (response.status_code, error_of(response)["message"]) == (500, "internal error")


async def test_a_full_router_refuses_with_retry_after(bench: Bench) -> None:
    async with bench.client(max_in_flight=2, retry_after_s=7.0) as client:
        bench.dispatcher.hold_at = 1
        async with asyncio.TaskGroup() as tasks:
            held = tasks.create_task(chat(client), name="held")
            await soon(lambda: bench.dispatcher.num_active == 1, what="active")
            response = await chat(client, n=2)
            bench.dispatcher.release.set()
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        assert error_of(response)["type"] == "rate_limit_error"
        assert (held.result().status_code, (await chat(client, n=2)).status_code) == (200, 200)


@pytest.mark.parametrize(("keys", "most"), [((), 8), (("a",), 8), (("a", "b"), 6)])
async def test_what_one_client_never_gets_is_no_matter_of_time(
    bench: Bench, keys: tuple[str, ...], most: int
) -> None:
    async with bench.client(max_in_flight=8, api_keys=keys) as client:
        client.headers["authorization"] = "Bearer a"
        assert (await chat(client, n=most)).status_code == 200
        response = await chat(client, n=most + 1)
        assert (response.status_code, error_of(response)["param"]) == (400, "n")
        assert re.search(rf"at most {most} .* {most + 1}", error_of(response)["message"])
        response = await complete(client, prompt=["a"] * 9)
        assert (response.status_code, error_of(response)["param"]) == (400, "prompt")
    async with bench.client(max_bodies_bytes=1000) as client:
        client.headers["authorization"] = "Bearer a"
        assert (await chat(client, user="x" * 999)).status_code == 413


@pytest.mark.parametrize("good", [0, 1])
def test_nothing_is_built_of_what_follows_a_mistake(bench: Bench, good: int) -> None:
    """4 MiB that would be 16 of list and 500 of messages."""
    messages = b",".join([msgspec.json.encode(HI[0])] * good + [b"1"] * (2 << 20))
    body = b'{"model": "%b", "messages": [%b]}' % (MODEL.encode(), messages)
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as raised:
            prepare_chat(bench.runtime, body, RequestId("r"), bench.choose)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert raised.value.param == f"messages[{good}]"
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": HI}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "extra": 1}, "extra"),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_bad_token_requests_are_named_by_field(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code in (400, 404)
    assert error_of(response)["param"] == param
