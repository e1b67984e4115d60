"""Every kind of JSON value in every place of every request: served, or a refusal with its path."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import Bench, make_bench
from support.odd_values import HOLE, PATH, filled

from protocol.ids import RequestId
from router.api.errors import ApiError, openai_error
from router.api.parsing import Schema
from router.http.models.tokens import detokenize, tokenize
from router.openai.messages import MORE, Message
from router.openai.prepare import prepare_chat, prepare_completion
from router.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
)
from router.openai.tools import Function

HI: dict[str, Any] = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [HI]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}
ENDPOINTS: dict[str, tuple[type[Schema], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, CHAT),
    "/v1/completions": (CompletionRequest, TEXT),
    "/tokenize": (TokenizeRequest, {"prompt": "hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [7]}),
}
OVERFULL = {"context_length_exceeded"}
"""Codes of a refusal that is about another field than the one with the odd value."""


def places(endpoint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths, and the request with a hole there."""
    schema, base = ENDPOINTS[endpoint]
    for name in (*schema.__struct_fields__, *schema.unsupported):
        yield name, base | {name: HOLE}
    if "messages" in schema.__struct_fields__:
        plain = {key: value for key, value in base.items() if key not in ("messages", "prompt")}
        for name in (*Message.__struct_fields__, *MORE, "never_heard_of"):
            yield f"messages[1].{name}", plain | {"messages": [HI, HI | {name: HOLE}]}
        for at, part in {
            "": HOLE,
            ".type": {"type": HOLE},
            ".text": {"type": "text", "text": HOLE},
            ".refusal": {"type": "refusal", "refusal": HOLE},
            ".cache_control": {"type": "text", "text": "x", "cache_control": HOLE},
        }.items():
            parts = [{"type": "text", "text": "x"}, part]
            chat = {"messages": [HI | {"content": parts}]}
            yield f"messages[0].content[1]{at}", plain | chat
        yield "messages[0]", plain | {"messages": [HOLE]}
        called: dict[str, Any] = {"role": "assistant", "tool_calls": [HOLE]}
        yield "messages[1].tool_calls[0]", plain | {"messages": [HI, called]}
        for name in ("name", "arguments"):
            function = {"name": "f", name: HOLE}
            called = {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}
            yield (
                f"messages[1].tool_calls[0].function.{name}",
                plain | {"messages": [HI, called]},
            )
        for name in Function.__struct_fields__:
            tool = {"type": "function", "function": {"name": "f", name: HOLE}}
            yield f"tools[0].function.{name}", plain | {"messages": [HI], "tools": [tool]}
        yield "tools[0]", plain | {"messages": [HI], "tools": [HOLE]}
        choice = {"type": "function", "function": {"name": HOLE}}
        yield "tool_choice.function.name", plain | {"messages": [HI], "tool_choice": choice}
        kwargs = {"chat_template_kwargs": {"a": HOLE}}
        yield "chat_template_kwargs", plain | {"messages": [HI]} | kwargs
    if "stream_options" in schema.__struct_fields__:
        for name in StreamOptions.__struct_fields__:
            yield f"stream_options.{name}", base | {"stream": True, "stream_options": {name: HOLE}}
        yield "stop[1]", base | {"stop": ["a", HOLE]}
        yield "metadata", base | {"metadata": {"a": HOLE}}
        yield "logit_bias", base | {"logit_bias": {"7": HOLE}}
        yield "stop_token_ids[1]", base | {"stop_token_ids": [7, HOLE]}
    if endpoint == "/v1/completions":
        for start in ("a", 7, [7]):
            yield "prompt[1]", base | {"prompt": [start, HOLE]}
        yield "prompt[0][1]", base | {"prompt": [[7, HOLE]]}
    if endpoint == "/detokenize":
        yield "tokens[1]", base | {"tokens": [7, HOLE]}


def bodies(endpoint: str) -> Iterator[tuple[str, str, bytes]]:
    return filled(places(endpoint))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("checkpoint"))


def serve(bench: Bench, endpoint: str, body: bytes) -> None:
    match endpoint:
        case "/v1/chat/completions":
            prepare_chat(bench.runtime, body, RequestId("r"), bench.choose)
        case "/v1/completions":
            prepare_completion(bench.runtime, body, RequestId("r"), bench.choose)
        case "/tokenize":
            tokenize(bench.choose, body)
        case _:
            detokenize(bench.choose, body)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_any_value_in_any_place_is_served_or_refused_with_its_path(
    bench: Bench, endpoint: str
) -> None:
    num_served = num_refused = 0
    for place, kind, body in bodies(endpoint):
        try:
            serve(bench, endpoint, body)
            num_served += 1
        except ApiError as error:
            num_refused += 1
            told = json.loads(openai_error(error))["error"]
            where = f"{place}, {kind}: {told}"
            param = told["param"]
            assert error.status == (404 if told["code"] == "model_not_found" else 400), where
            assert told["type"] == "invalid_request_error", where
            assert param is not None and PATH.fullmatch(param), where
            related = param.startswith(place) or place.startswith(param)
            assert related or told["code"] in OVERFULL, where
            assert len(told["message"]) < 400, where
    assert num_served > 5 and num_refused > 50


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_odd_values_over_http_are_answered_in_openais_shape(
    bench: Bench, endpoint: str
) -> None:
    seen = [
        body
        for index, (_, _, body) in enumerate(bodies(endpoint))
        if index % 37 == 0 and len(body) < 10_000
    ]
    async with bench.client() as client:
        for body in seen:
            response = await client.post(endpoint, content=body)
            assert response.status_code in (200, 400, 404), (body, response.text)
            if response.status_code != 200:
                error = response.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.anyio
async def test_whole_bodies_that_are_no_request(tmp_path: Path) -> None:
    odd = [b"", b"x", b"\xff", "{}".encode("utf-16"), b"\xef\xbb\xbf{}", b"{}x", b"[]", b"5"]
    async with make_bench(tmp_path).client() as client:
        for endpoint in ENDPOINTS:
            for body in odd:
                response: httpx.Response = await client.post(endpoint, content=body)
                assert response.status_code == 400, (endpoint, body)
                assert response.json()["error"]["code"] == "invalid_json", (endpoint, body)
