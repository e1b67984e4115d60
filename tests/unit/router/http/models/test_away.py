"""A model whose workers load is waited for; a revision that leaves before a token is replaced by
the one that its name stands for then."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import Bench, events_of
from support.eventually import soon
from support.two_models import ONE, OTHER, OTHER_REVISION, add_text, two_models

from protocol.errors import BatonError
from protocol.messages import ServedVersion
from router.http.kept_bodies import KeptBodies
from router.models.model_unknown import ModelAway
from router.requests.events import Ended, GenerationRequest, NoWorkers, RequestFailed
from router.requests.token_listener import TokenListener

pytestmark = pytest.mark.anyio
HI = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "[hi]"},
    "/v1/messages": {"messages": HI, "max_tokens": 20},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "[hi]"},
    "/tokenize": {"messages": HI},
    "/detokenize": {"tokens": [9]},
    "/v1/messages/count_tokens": {"messages": HI},
}
GENERATING = [path for path in ASKED if path.startswith("/v1") and "count" not in path]
NEW = "abcdef0123"
LOST = RequestFailed("lost", code="internal", retryable=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return two_models(tmp_path)


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with bench.client() as client:
        yield client


class Leaving:
    """A dispatcher whose workers of one version are gone, from its token `at` on: then `leave` says
    what is served instead."""

    def __init__(self, bench: Bench, gone: ServedVersion, error: BatonError, *, at: int) -> None:
        self._inner = bench.dispatcher
        self._bench, self._gone, self._error, self._at = bench, gone, error, at

    async def generate(self, request: GenerationRequest, listener: TokenListener) -> Ended:
        self._inner.failures = {self._at: self._error} if request.version == self._gone else {}
        try:
            return await self._inner.generate(request, listener)
        finally:
            if request.version == self._gone:
                texts = self._bench.models.texts
                texts[:] = [one for one in texts if one.version != self._gone]


def rolled_out(bench: Bench, path: Path, error: BatonError, *, at: int) -> Leaving:
    """A model whose old revision is chosen, and gone when it should answer."""
    old = bench.models.texts[0]
    bench.models.texts[:] = [old]
    leaving = Leaving(bench, old.version, error, at=at)
    choose = bench.models.choose

    def chosen(name: str | None, key: str) -> Any:
        result = choose(name, key)
        if len(bench.models.texts) == 1 and result.text is old:
            add_text(bench, path / "new", model=ONE, revision=NEW)
            bench.models.choose = choose  # type: ignore[method-assign]
        return result

    bench.models.choose = chosen  # type: ignore[method-assign]
    return leaving


@pytest.mark.parametrize("path", ASKED)
async def test_a_model_whose_worker_loads_is_waited_for(
    bench: Bench, client: httpx.AsyncClient, path: str
) -> None:
    loaded = bench.models.coming[OTHER] = asyncio.Event()
    asking = asyncio.create_task(
        client.post(path, json={"model": OTHER} | ASKED[path]), name="asking"
    )
    await soon(lambda: bench.models.waiting[OTHER] > 0, what="the request waits")
    others = await client.post("/tokenize", json={"model": ONE, "prompt": "hi"})
    assert others.status_code == 200 and not asking.done()
    loaded.set()
    answer = await asking
    assert answer.status_code == 200
    assert answer.headers["x-baton-model"] == f"{OTHER}@{OTHER_REVISION}"


async def test_waiting_takes_of_the_requests_time(bench: Bench, client: httpx.AsyncClient) -> None:
    loaded = bench.models.coming[OTHER] = asyncio.Event()
    asked = {"model": OTHER, "messages": HI}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=asked), name="asking")
    await soon(lambda: bench.models.waiting[OTHER] > 0, what="the request waits")
    loaded.set()
    assert (await asking).status_code == 200
    (request,) = bench.dispatcher.requests
    assert request.deadline_s < bench.runtime.limits.request_timeout_s


async def test_who_waits_no_longer_than_its_deadline_is_told_to_come_again(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.models.coming[OTHER] = asyncio.Event()
    answer = await client.post(
        "/v1/chat/completions",
        json={"model": OTHER, "messages": HI},
        headers={"x-request-timeout-s": "0.01"},
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "no_workers"


async def test_a_model_that_nobody_brings_is_away_at_once(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    async def wait_for(name: str | None) -> None:
        raise ModelAway(name, "nobody loads it")

    bench.models.coming[OTHER] = asyncio.Event()
    bench.models.wait_for = wait_for  # type: ignore[method-assign]
    for path, fields in ASKED.items():
        answer = await client.post(path, json={"model": OTHER} | fields)
        assert answer.status_code == 503 and "retry-after" in answer.headers
    shown = (await client.get(f"/v1/models/{OTHER}")).json()
    assert shown["default_sampling_params"] == {}


async def test_a_large_request_that_waits_keeps_no_other_from_being_read(bench: Bench) -> None:
    bench.models.coming[OTHER] = asyncio.Event()
    text = "x" * (300 << 10)
    async with bench.client() as client:
        asked = {"model": OTHER, "prompt": text}
        asking = asyncio.create_task(client.post("/tokenize", json=asked), name="asking")
        await soon(lambda: bench.models.waiting[OTHER] > 0, what="the request waits")
        answer = await client.post("/tokenize", json={"model": ONE, "prompt": text})
        assert answer.status_code == 400 and not asking.done()
        bench.models.coming[OTHER].set()
        await asking


@pytest.mark.parametrize(
    "error", [NoWorkers("gone"), RequestFailed("lost", code="internal", retryable=True)]
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GENERATING)
async def test_a_revision_that_leaves_before_a_token_is_replaced_by_its_successor(
    bench: Bench, path: str, stream: bool, error: BatonError, tmp_path: Path
) -> None:
    """Prepared anew, by the successor's text: not one token of the old one reaches its workers."""
    leaving = rolled_out(bench, tmp_path, error, at=-1)
    async with bench.client(dispatcher=leaving) as client:
        asked = {"model": ONE} | ASKED[path] | ({"stream": True} if stream else {})
        if path == "/v1/embeddings":
            asked.pop("stream", None)
        answer = await client.post(path, json=asked)
    assert answer.status_code == 200
    assert answer.headers["x-baton-model"] == f"{ONE}@{NEW}"
    old, new = bench.dispatcher.requests
    assert old.version is not None and new.version is not None
    assert (old.version.revision == NEW, new.version.revision) == (False, NEW)
    (text,) = bench.models.texts
    assert "hi" in text.tokenizer.decode(new.token_ids) and old.token_ids != new.token_ids
    assert new.id == old.id


async def test_a_successor_whose_text_is_on_the_way_is_waited_for(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.models.coming[ONE] = asyncio.Event()
    bench.models.coming[ONE].set()
    bench.dispatcher.failures, bench.dispatcher.num_failures_left = {-1: NoWorkers("gone")}, 1

    def leave(name: str | None, key: str) -> Any:
        """The first choice is the last of the old revision's."""
        chosen = choose(name, key)
        bench.models.coming[ONE].clear()
        bench.models.choose = choose  # type: ignore[method-assign]
        return chosen

    choose, bench.models.choose = bench.models.choose, leave  # type: ignore[method-assign]
    asked = {"model": ONE, "prompt": "hi"}
    asking = asyncio.create_task(client.post("/v1/completions", json=asked), name="asking")
    await soon(lambda: bench.models.waiting[ONE] > 0, what="the request waits")
    bench.models.coming[ONE].set()
    assert (await asking).status_code == 200
    assert len(bench.dispatcher.requests) == 2


async def test_a_whole_answer_begins_anew_even_after_tokens(bench: Bench, tmp_path: Path) -> None:
    """Its client has had nothing."""
    async with bench.client(dispatcher=rolled_out(bench, tmp_path, LOST, at=2)) as client:
        answer = await client.post("/v1/completions", json={"model": ONE, "prompt": "hi"})
    assert answer.json()["choices"][0]["text"].strip() == bench.dispatcher.reply
    assert answer.headers["x-baton-model"] == f"{ONE}@{NEW}"


async def test_a_stream_that_has_begun_stays_with_its_revision(
    bench: Bench, tmp_path: Path
) -> None:
    async with bench.client(dispatcher=rolled_out(bench, tmp_path, LOST, at=2)) as client:
        asked = {"model": ONE, "prompt": "hi", "stream": True}
        answer = await client.post("/v1/completions", json=asked)
    assert len(bench.dispatcher.requests) == 1
    assert events_of(answer)[-1]["error"]["code"] == "unavailable"


async def test_what_fails_for_good_or_with_its_revision_there_is_not_begun_anew(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    for error, status in (
        (NoWorkers("none"), 503),
        (RequestFailed("wrong", code="invalid"), 400),
    ):
        bench.dispatcher.requests.clear()
        bench.dispatcher.failures = {-1: error}
        answer = await client.post("/v1/completions", json={"model": ONE, "prompt": "hi"})
        assert (answer.status_code, len(bench.dispatcher.requests)) == (status, 1)


def test_kept_bodies_take_no_more_than_their_room_and_the_oldest_go() -> None:
    kept = KeptBodies(max_bytes=10)
    numbers = [kept.keep(b"12") for _ in range(5)]
    assert [kept.find(number) for number in numbers] == [b"12"] * 5
    last = kept.keep(b"1")
    assert [kept.find(number) for number in numbers] == [None, *[b"12"] * 4]
    assert (kept.find(last), kept.num_bytes) == (b"1", 9)
    for number in (*numbers, last):
        kept.drop(number)
    assert kept.num_bytes == 0


def test_a_large_body_costs_no_other_its_room() -> None:
    kept = KeptBodies(max_bytes=40)
    small, large = kept.keep(b"x" * 10), kept.keep(b"x" * 11)
    assert kept.find(small) and kept.find(large) is None and kept.num_bytes == 10
    kept.drop(large)
    assert kept.num_bytes == 10
