"""docs/parameters.md is true: each row is sent, and what it says becomes of it."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from anthropic.types import message_create_params as message_params
from openai.types import EmbeddingCreateParams
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params
from support.parameter_bench import ParameterBench
from support.parameters import Parameter, parameters

from router.http.openapi.endpoints import ENDPOINTS

pytestmark = pytest.mark.anyio
ROWS = parameters()
UNLIKE = ("id", "created", "created_at", "completed_at")
"""Differ between two requests that ask for the same; so does what is named after the request."""
NAMED = re.compile(rb'[0-9a-f]{32}|"(?:created|created_at|completed_at)":\d+')


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> ParameterBench:
    return ParameterBench(tmp_path_factory.mktemp("checkpoint"))


async def sent(bench: ParameterBench, row: Parameter, **more: Any) -> tuple[httpx.Response, Any]:
    """The answer, and what was computed and answered without what is never the same."""
    bench.bench.dispatcher.requests.clear()
    async with bench.client() as client:
        answer = await client.post(row.path, json=row.body | more)
    asked = [
        (one.token_ids, one.salt, one.priority, one.reading, msgspec.structs.asdict(one.sampling))
        for one in bench.bench.dispatcher.requests
    ]
    return answer, (asked, _alike(answer))


def _alike(answer: httpx.Response) -> Any:
    if not answer.headers["content-type"].startswith("application/json"):
        return NAMED.sub(b"", answer.content)
    return _without_names(answer.json())


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_names(v) for name, v in value.items() if name not in UNLIKE}
    return [_without_names(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("row", [row for row in ROWS if row.here != "refused"], ids=str)
async def test_what_is_said_to_be_supported_changes_something_and_a_hint_nothing(
    bench: ParameterBench, row: Parameter
) -> None:
    without, before = await sent(bench, row)
    assert without.status_code == 200, without.text
    answer, after = await sent(bench, row, **{row.name: row.value})
    assert answer.status_code == 200, answer.text
    assert (before != after) == (row.here == "supported")


@pytest.mark.parametrize("row", [row for row in ROWS if row.here == "refused"], ids=str)
async def test_what_is_said_to_be_refused_is_refused_by_name(
    bench: ParameterBench, row: Parameter
) -> None:
    answer, _ = await sent(bench, row, **{row.name: row.value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    if "param" in error:
        assert str(error["param"]).split(".")[0].split("[")[0] == row.name
        assert error["code"] == row.code
    assert row.name in error["message"]


def documented(*types: Any) -> set[str]:
    return {name for one in types for name in one.__annotations__}


CLIENTS = {
    "/v1/chat/completions": documented(
        chat_params.CompletionCreateParamsNonStreaming, chat_params.CompletionCreateParamsStreaming
    ),
    "/v1/completions": documented(
        completion_params.CompletionCreateParamsNonStreaming,
        completion_params.CompletionCreateParamsStreaming,
    ),
    "/v1/embeddings": documented(EmbeddingCreateParams),
    "/v1/responses": documented(
        response_params.ResponseCreateParamsBase,
        response_params.ResponseCreateParamsNonStreaming,
        response_params.ResponseCreateParamsStreaming,
    ),
    "/v1/messages": documented(
        message_params.MessageCreateParamsBase, message_params.MessageCreateParamsStreaming
    ),
}
"""What the SDKs of OpenAI and Anthropic can send."""
ELSEWHERE = {"model", "previous_response_id"}
"""Rows that need more than a request beside: tests of their own have them."""


@pytest.mark.parametrize("path", CLIENTS)
def test_the_page_has_every_parameter_that_clients_know_and_that_we_read(path: str) -> None:
    (request,) = {one.request for one in ENDPOINTS if one.path == path and one.request}
    rows = {row.name for row in ROWS if row.path == path}
    read = {*request.__struct_fields__, *request.unsupported}
    assert CLIENTS[path] - rows - ELSEWHERE == set()
    assert rows <= read, "a row of what nobody reads"
    assert read - rows <= ELSEWHERE
