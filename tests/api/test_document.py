"""`/openapi.json` says what the server does: every path, its requests as they are taken, its
answers as they are sent."""

import json
import re
from typing import Any

import httpx
import msgspec
import pytest
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from support.api import MODEL, Bench

from router.http.openapi.endpoint import Endpoint
from router.http.openapi.endpoints import ENDPOINTS
from router.http.openapi.openai_answers import ErrorAnswer
from router.http.openapi.read_fields import json_type

pytestmark = pytest.mark.anyio
ASKING = [one for one in ENDPOINTS if one.request is not None]
STREAMING = [one for one in ASKING if one.event is not None]


def by_path(one: Endpoint) -> str:
    return f"{one.method} {one.path}"


async def ask(client: httpx.AsyncClient, one: Endpoint, **more: Any) -> httpx.Response:
    path = one.path.replace("{model}", MODEL)
    assert one.request is not None
    named = {"model": MODEL} if "model" in one.request.__struct_fields__ else {}
    return await client.post(path, json={**named, **one.asked, **more})


def test_the_document_has_every_path_and_no_other(bench: Bench) -> None:
    served = {
        (re.sub(r":\w+", "", route.path), method.lower())
        for route in bench.app().routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    }
    assert {(one.path, one.method) for one in ENDPOINTS} == served


async def test_the_document_and_its_page_need_neither_a_key_nor_another_server(
    bench: Bench,
) -> None:
    async with bench.client(api_keys=("secret",)) as client:
        document = (await client.get("/openapi.json")).json()
        assert document["components"]["schemas"]["ChatRequest"]["properties"]["messages"]
        page = (await client.get("/docs")).text
        parts = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert parts and all(part.startswith("http://router/") for part in parts)
        for part in (*parts, "/openapi.json"):
            assert (await client.get(part)).status_code == 200


@pytest.mark.parametrize("one", ASKING, ids=by_path)
def test_every_field_with_a_reader_says_what_json_it_takes(one: Endpoint) -> None:
    assert one.request is not None
    for field in set(one.request.readers) & set(one.request.__struct_fields__):
        assert json_type(one.request, field)


@pytest.mark.parametrize("one", ASKING, ids=by_path)
async def test_an_example_is_answered_as_the_document_says(bench: Bench, one: Endpoint) -> None:
    async with bench.client() as client:
        answer = await ask(client, one)
    assert answer.status_code == 200, answer.text
    msgspec.json.decode(answer.content, type=one.answer)


@pytest.mark.parametrize("one", STREAMING, ids=by_path)
async def test_a_streamed_example_has_the_events_of_the_document(
    bench: Bench, one: Endpoint
) -> None:
    async with bench.client() as client:
        answer = await ask(client, one, stream=True)
    lines = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
    events = [line for line in lines if line != "[DONE]"]
    assert answer.status_code == 200 and events
    for event in events:
        msgspec.json.decode(event, type=one.event)


@pytest.mark.parametrize("one", ASKING, ids=by_path)
async def test_a_refusal_has_the_shape_of_the_document(bench: Bench, one: Endpoint) -> None:
    async with bench.client() as client:
        answer = await ask(client, one, no_such_field=1)
    assert answer.status_code == 400
    msgspec.json.decode(answer.content, type=one.error or ErrorAnswer)


@pytest.mark.parametrize("one", [one for one in ENDPOINTS if one.request is None], ids=by_path)
async def test_what_is_got_is_as_the_document_says(bench: Bench, one: Endpoint) -> None:
    path = one.path.replace("{model}", MODEL)
    async with bench.client() as client:
        answer = await client.request(one.method, path)
        if one.to_anthropic is not None:
            other = await client.request(
                one.method, path, headers={"anthropic-version": "2023-06-01"}
            )
            msgspec.json.decode(other.content, type=one.to_anthropic)
    if "{" in path:
        assert answer.status_code == 404
        msgspec.json.decode(answer.content, type=one.error or ErrorAnswer)
    elif one.answer is not str:
        msgspec.json.decode(answer.content, type=one.answer)


@pytest.mark.parametrize("one", ENDPOINTS, ids=by_path)
def test_every_request_and_answer_has_an_example_that_fits_its_schema(
    bench: Bench, one: Endpoint
) -> None:
    document = bench.app().openapi()
    operation = document["paths"][one.path][one.method]
    assert not re.search("[a-z][A-Z]", operation["summary"]), "a name of the code's"
    told = [operation.get("requestBody", {"content": {}}), *operation["responses"].values()]
    for shape in (each for one in told for each in one["content"].values()):
        schema = {**shape["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(shape["example"])


async def test_either_kind_of_key_is_told(bench: Bench) -> None:
    document = bench.app(api_keys=("secret",)).openapi()
    assert {name for each in document["security"] for name in each} == {"bearer", "x-api-key"}
    async with bench.client(api_keys=("secret",)) as client:
        headers: tuple[dict[str, str], ...] = (
            {"x-api-key": "secret"},
            {"authorization": "Bearer secret"},
            {},
        )
        answers = [await client.get("/version", headers=each) for each in headers]
    assert [each.status_code for each in answers] == [200, 200, 401]


def test_the_document_is_json_and_its_references_lead_somewhere(bench: Bench) -> None:
    text = json.dumps(bench.app().openapi())
    document = json.loads(text)
    for name in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
        assert name in document["components"]["schemas"]
