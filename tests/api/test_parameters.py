"""docs/parameters.md is true: each row is sent, and what it says becomes of it."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from support.api import Bench
from support.parameter_bench import parameter_bench
from support.parameters import Parameter, parameters

from router.anthropic.schemas import MessagesRequest
from router.api.parsing import Schema
from router.openai.embeddings import EmbeddingRequest
from router.openai.schemas import ChatRequest, CompletionRequest
from router.responses.schemas import ResponseRequest

pytestmark = pytest.mark.anyio
ROWS = parameters()
UNLIKE = ("id", "created", "created_at", "completed_at")
"""Differ between two requests that ask for the same; so does what is named after the request."""
NAMED = re.compile(rb'[0-9a-f]{32}|"(?:created|created_at|completed_at)":\d+')


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return parameter_bench(tmp_path_factory.mktemp("checkpoint"))


SCHEMAS: dict[str, type[Schema]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/embeddings": EmbeddingRequest,
}
WITHOUT_ROW = {"model", "previous_response_id"}
"""Another value of theirs is a 404."""


@pytest.mark.parametrize("path", SCHEMAS)
def test_no_parameter_that_the_code_names_is_missing(path: str) -> None:
    schema = SCHEMAS[path]
    named = {one.encode_name for one in msgspec.structs.fields(schema)} | set(schema.unsupported)
    told = {row.name for row in ROWS if row.path == path and row.code != "unknown_parameter"}
    assert named - WITHOUT_ROW == told


async def sent(bench: Bench, row: Parameter, **more: Any) -> tuple[httpx.Response, Any]:
    """The answer, and what was computed and answered without what is never the same."""
    bench.dispatcher.requests.clear()
    async with bench.client() as client:
        answer = await client.post(row.path, json=row.body | more)
    asked = [
        (request.token_ids, request.salt, request.priority, msgspec.to_builtins(request.sampling))
        for request in bench.dispatcher.requests
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
    bench: Bench, row: Parameter
) -> None:
    without, before = await sent(bench, row)
    assert without.status_code == 200, without.text
    answer, after = await sent(bench, row, **{row.name: row.value})
    assert answer.status_code == 200, answer.text
    assert (before != after) == (row.here == "supported")


@pytest.mark.parametrize("row", [row for row in ROWS if row.here == "refused"], ids=str)
async def test_what_is_said_to_be_refused_is_refused_by_name(bench: Bench, row: Parameter) -> None:
    answer, _ = await sent(bench, row, **{row.name: row.value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    if "param" in error:
        assert str(error["param"]).split(".")[0].split("[")[0] == row.name
        assert error["code"] == row.code
    assert row.name in error["message"]
