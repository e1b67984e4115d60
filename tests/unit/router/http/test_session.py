"""`x-session-id`: from the header to the requests of every API, apart by client."""

from typing import Any

import httpx
import pytest
from support.api import HI, MODEL, Bench, error_of

pytestmark = pytest.mark.anyio

PATHS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": MODEL, "messages": HI}),
    ("/v1/completions", {"model": MODEL, "prompt": "hi", "n": 2}),
    ("/v1/messages", {"model": MODEL, "messages": HI, "max_tokens": 4}),
    ("/v1/responses", {"model": MODEL, "input": "hi"}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_a_session_is_the_same_for_the_same_words_of_one_client(
    bench: Bench, client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    for session in ("a", "a", "b"):
        answer = await client.post(path, json=body, headers={"x-session-id": session})
        assert answer.status_code == 200
    first, *_, last = (one.session for one in bench.dispatcher.requests)
    num_choices = len(bench.dispatcher.requests) // 3
    sessions = [one.session for one in bench.dispatcher.requests]
    assert sessions == [first] * (2 * num_choices) + [last] * num_choices
    assert first and last and first != last


async def test_without_the_header_there_is_no_session_whatever_the_body_names(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    names = ("user", "prompt_cache_key", "safety_identifier", "session_id")
    body = {"model": MODEL, "messages": HI} | dict.fromkeys(names, "someone")
    await client.post("/v1/chat/completions", json=body)
    assert bench.dispatcher.requests[-1].session == ""


async def test_two_clients_who_name_a_session_alike_have_one_each(bench: Bench) -> None:
    body = {"model": MODEL, "messages": HI}
    async with bench.client(api_keys=("one", "two")) as client:
        for key in ("one", "two"):
            headers = {"authorization": f"Bearer {key}", "x-session-id": "same"}
            await client.post("/v1/chat/completions", json=body, headers=headers)
    one, two = (request.session for request in bench.dispatcher.requests)
    assert one != two


@pytest.mark.parametrize("session", ["", "two words", "x" * 257])
async def test_what_is_no_name_of_a_session_is_refused(
    client: httpx.AsyncClient, session: str
) -> None:
    body = {"model": MODEL, "messages": HI}
    answer = await client.post("/v1/chat/completions", json=body, headers={"x-session-id": session})
    assert answer.status_code == 400 and error_of(answer)["param"] == "x-session-id"
