"""A request that begins anew or waits for its model: its body, time, charge and client."""

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.types import Message
from support.api import Bench, with_stream_door
from support.eventually import soon
from support.two_models import ONE, OTHER, two_models

from protocol.process.metrics import RouterMetrics
from router.http.kept_bodies import KeptBodies
from router.models.model_unknown import ModelAway
from router.requests.events import NoWorkers
from router.tenants.api_key import ApiKey, key_digest
from router.tenants.key_ring import KeyRing
from router.tenants.rate_limits import RateLimits

pytestmark = pytest.mark.anyio
ASKED = {"model": ONE, "prompt": "hi"}


@pytest.fixture
def bench(tmp_path: Any) -> Bench:
    return two_models(tmp_path)


def lose_first(bench: Bench) -> asyncio.Event:
    """The first answer is lost before a token, and its model is away from then on until it has
    loaded."""
    loaded = bench.models.coming[ONE] = asyncio.Event()
    loaded.set()
    bench.dispatcher.failures, bench.dispatcher.num_failures_left = {-1: NoWorkers("gone")}, 1
    choose = bench.models.choose

    def chosen(name: str | None, key: str) -> Any:
        found = choose(name, key)
        if name == ONE:
            loaded.clear()
            bench.models.choose = choose  # type: ignore[method-assign]
        return found

    bench.models.choose = chosen  # type: ignore[method-assign]
    return loaded


async def test_a_body_that_makes_room_after_the_decision_is_there_still(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = KeptBodies.find

    def find_once(kept: KeptBodies, number: int) -> bytes | None:
        body = find(kept, number)
        kept.drop(number)
        return body

    monkeypatch.setattr(KeptBodies, "find", find_once)
    loaded = lose_first(bench)
    async with bench.client() as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=ASKED), name="asking")
        await soon(lambda: bench.models.waiting[ONE] > 0, what="the request waits")
        loaded.set()
        assert (await asking).status_code == 200
    assert len(bench.dispatcher.requests) == 2


async def test_who_waits_before_and_after_a_loss_has_its_time_once(bench: Bench) -> None:
    loaded = lose_first(bench)
    loaded.clear()
    async with bench.client() as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=ASKED), name="asking")
        await soon(lambda: bench.models.waiting[ONE] > 0, what="the request waits")
        await asyncio.sleep(0.1)  # longer than the second time
        loaded.set()
        await soon(lambda: bool(bench.dispatcher.requests), what="its first answer begins")
        await soon(lambda: bench.models.waiting[ONE] > 0, what="the request waits again")
        loaded.set()
        assert (await asking).status_code == 200
    first, second = (one.deadline_s for one in bench.dispatcher.requests)
    assert second < first < bench.runtime.limits.request_timeout_s


async def test_what_was_charged_is_given_back_when_the_new_beginning_fails(bench: Bench) -> None:
    lose_first(bench)

    async def wait_for(name: str | None) -> None:
        raise ModelAway(name, "nobody loads it")

    bench.models.wait_for = wait_for  # type: ignore[method-assign]
    key = ApiKey(digest=key_digest(b"k"), tenant="acme", tokens_per_minute=50)
    limits = RateLimits(router="r", store=None, metrics=RouterMetrics())
    async with bench.client(keys=KeyRing((key,)), rate_limits=limits) as client:
        headers = {"authorization": "Bearer k"}
        answer = await client.post("/v1/completions", json=ASKED, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_workers")
    assert len(bench.dispatcher.requests) == 1
    assert limits.standings(key)["tokens"].remaining == 50


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
async def test_who_hangs_up_waits_no_longer(bench: Bench, path: str) -> None:
    bench.models.coming[OTHER] = asyncio.Event()
    await leave_while_waiting(bench, path, OTHER)
    assert not bench.dispatcher.requests


async def test_who_hangs_up_after_a_loss_waits_no_longer(bench: Bench) -> None:
    lose_first(bench)
    await leave_while_waiting(bench, "/v1/completions", ONE)
    assert len(bench.dispatcher.requests) == 1


async def leave_while_waiting(bench: Bench, path: str, model: str) -> None:
    """Straight to the app, for httpx in memory never says that it hangs up."""
    gone, body = asyncio.Event(), msgspec.json.encode(ASKED | {"model": model})
    said: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if said:
            return said.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    headers = [(b"content-type", b"application/json"), (b"host", b"router")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers}
    scope |= {"raw_path": path.encode(), "query_string": b"", "client": ("127.0.0.1", 1)}
    app = with_stream_door(bench.app())
    asking = asyncio.ensure_future(app(scope | {"extensions": {}}, receive, send))
    await soon(lambda: bench.models.waiting[model] > 0, what="the request waits")
    gone.set()
    await asking
    assert bench.models.waiting[model] == 0
