"""What an API key of the keys file changes about a request, whatever the API."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from support.api import HI, MODEL, Bench, chat, error_of
from support.eventually import soon
from support.fake_dispatcher import BEFORE_PLACED

from protocol.process.metrics import RouterMetrics
from router.admission.shed import QueueShed
from router.requests.events import NoWorkers
from router.tenants.api_key import ApiKey, key_digest
from router.tenants.key_ring import KeyRing
from router.tenants.rate_limits import RateLimits

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 4},
    "/v1/responses": {"input": "hi"},
}


def key(name: str, tenant: str = "acme", **terms: Any) -> ApiKey:
    return ApiKey(digest=key_digest(name.encode()), tenant=tenant, **terms)


@asynccontextmanager
async def serving(bench: Bench, *keys: ApiKey, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Limits are kept by this router alone."""
    limits = RateLimits(router="r", store=None, metrics=RouterMetrics())
    async with bench.client(keys=KeyRing(keys), rate_limits=limits, **changes) as client:
        yield client


def opened_by(name: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"} | more


async def ask(
    client: httpx.AsyncClient, name: str, path: str = "/v1/chat/completions", **fields: Any
) -> httpx.Response:
    body = {"model": MODEL} | BODIES[path] | fields
    return await client.post(path, json=body, headers=opened_by(name))


def limit_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in headers if "ratelimit" in name}


async def test_a_key_of_the_file_opens_the_api_and_no_other_does(bench: Bench) -> None:
    async with serving(bench, key("right"), key("over", expires_at=1.0)) as client:
        assert (await ask(client, "right")).status_code == 200
        own = await client.get("/v1/models", headers={"x-api-key": "right"})
        assert own.status_code == 200
        for wrong in ("over", "other", ""):
            answer = await client.get("/v1/models", headers={"x-api-key": wrong})
            assert error_of(answer)["code"] == "invalid_api_key"


async def test_a_file_without_keys_opens_nothing(bench: Bench) -> None:
    async with serving(bench) as client:
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/health")).status_code == 200


async def test_plain_keys_go_on_beside_the_file(bench: Bench) -> None:
    async with serving(bench, key("filed"), api_keys=("plain",)) as client:
        for name in ("plain", "filed"):
            assert (await ask(client, name)).status_code == 200


@pytest.mark.parametrize("path", BODIES)
async def test_prefixes_of_two_tenants_never_meet(bench: Bench, path: str) -> None:
    async with serving(bench, key("a"), key("b", "other"), key("c")) as client:
        for name in "abc":
            assert (await ask(client, name, path)).status_code == 200
        a, b, c = (request.salt for request in bench.dispatcher.requests)
        assert a == c != b and a and b


async def test_salts_that_clients_ask_for_do_not_lead_to_another_tenant(bench: Bench) -> None:
    keys = key("a", "x"), key("b", "x:1")
    async with serving(bench, *keys, api_keys=("plain",)) as client:
        for name, salt in (("a", "1:s"), ("b", "s"), ("a", "3:x:1:s"), ("plain", "3:x:1:t")):
            await ask(client, name, cache_salt=salt)
        salts = [request.salt for request in bench.dispatcher.requests]
        assert len(set(salts)) == 4


async def test_plain_keys_share_prefixes_and_ask_for_any_priority(bench: Bench) -> None:
    async with bench.client(api_keys=("one", "two")) as client:
        for name in ("one", "two"):
            await ask(client, name, cache_salt="s", priority=-7)
        first, second = bench.dispatcher.requests
        assert (first.salt, first.priority) == ("s", -7) == (second.salt, second.priority)
        assert first.tenant != second.tenant


async def test_a_priority_counts_from_the_key_s_and_is_bounded_by_it(bench: Bench) -> None:
    async with serving(bench, key("k", priority=2, most_urgent=1, weight=3.0)) as client:
        for asked in (0, -1, -9, 4):
            await ask(client, "k", priority=asked)
        assert [one.priority for one in bench.dispatcher.requests] == [2, 1, 1, 6]
        assert {one.weight for one in bench.dispatcher.requests} == {3.0}


@pytest.mark.parametrize(("asked", "deadline_s"), [("2.5", 2.5), ("9999", 600.0)])
async def test_a_client_may_ask_for_a_nearer_deadline(
    bench: Bench, client: httpx.AsyncClient, asked: str, deadline_s: float
) -> None:
    body = {"model": MODEL, "messages": HI}
    await client.post("/v1/chat/completions", json=body, headers={"x-request-timeout-s": asked})
    assert bench.dispatcher.requests[-1].deadline_s == deadline_s


@pytest.mark.parametrize("asked", ["0", "-1", "soon", "", "1e9", "nan", "1" * 30])
async def test_a_deadline_that_is_no_time_is_refused_by_name(
    client: httpx.AsyncClient, asked: str
) -> None:
    headers = {"x-request-timeout-s": asked}
    body = {"model": MODEL, "messages": HI}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 400 and error_of(answer)["param"] == "x-request-timeout-s"


async def test_beyond_the_requests_of_a_minute_is_429_and_tells_when_to_come_back(
    bench: Bench,
) -> None:
    async with serving(bench, key("k", requests_per_minute=2)) as client:
        first = await ask(client, "k")
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        await ask(client, "k")
        refused = await ask(client, "k", stream=True)
        assert refused.status_code == 429 and error_of(refused)["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        told = limit_headers(refused.headers)
        assert told.keys() == {f"x-ratelimit-{w}-requests" for w in ("limit", "remaining", "reset")}
        assert told["x-ratelimit-remaining-requests"] == "0"
        assert len(bench.dispatcher.requests) == 2


async def test_anthropic_s_clients_are_told_in_their_headers(bench: Bench) -> None:
    async with serving(bench, key("k", requests_per_minute=1)) as client:
        assert (await ask(client, "k", "/v1/messages")).status_code == 200
        refused = await ask(client, "k", "/v1/messages")
        assert refused.status_code == 429 and "retry-after" in refused.headers
        assert refused.json()["error"]["type"] == "rate_limit_error"
        told = limit_headers(refused.headers)
        names = {f"anthropic-ratelimit-requests-{w}" for w in ("limit", "remaining", "reset")}
        assert told.keys() == names
        assert told["anthropic-ratelimit-requests-reset"].endswith("Z")


async def test_tokens_are_charged_as_asked_for_and_settled_as_used(bench: Bench) -> None:
    async with serving(bench, key("k", tokens_per_minute=100)) as client:
        first = await ask(client, "k", max_tokens=50)
        usage = first.json()["usage"]
        reserved = 100 - usage["prompt_tokens"] - 50
        assert first.headers["x-ratelimit-remaining-tokens"] == str(reserved)
        second = await ask(client, "k", max_tokens=1)
        used = usage["total_tokens"] + usage["prompt_tokens"] + 1
        assert second.headers["x-ratelimit-remaining-tokens"] == str(100 - used)
        rest = 100 - used - usage["prompt_tokens"]
        bench.dispatcher.hold_at = 0
        running = asyncio.create_task(ask(client, "k", max_tokens=rest), name="running")
        await soon(lambda: bench.dispatcher.num_active == 1)
        refused = await ask(client, "k", max_tokens=1)
        assert refused.status_code == 429 and "retry-after" in refused.headers
        bench.dispatcher.release.set()
        assert (await running).status_code == 200


async def test_a_prompt_that_no_minute_allows_is_not_to_be_sent_again(bench: Bench) -> None:
    async with serving(bench, key("k", tokens_per_minute=3)) as client:
        refused = await ask(client, "k")
        assert refused.status_code == 429 and error_of(refused)["code"] == "request_too_large"
        assert refused.headers["x-should-retry"] == "false"
        assert "retry-after" not in refused.headers


@pytest.mark.parametrize(
    "failure", [NoWorkers("none"), QueueShed("full", why="full", retry_after_s=3.0)]
)
async def test_what_no_worker_ever_had_costs_no_tokens(
    bench: Bench, failure: NoWorkers | QueueShed
) -> None:
    async with serving(bench, key("k", tokens_per_minute=100)) as client:
        bench.dispatcher.failures[BEFORE_PLACED] = failure
        assert (await ask(client, "k", max_tokens=40)).status_code == 503
        bench.dispatcher.failures.clear()
        assert (await ask(client, "k", max_tokens=40)).status_code == 200


@pytest.mark.parametrize(("why", "status"), [("full", 503), ("share", 429), ("wait", 503)])
async def test_who_is_sent_away_from_the_queue_is_told_when_to_come_back(
    bench: Bench, client: httpx.AsyncClient, why: Any, status: int
) -> None:
    bench.dispatcher.failures[BEFORE_PLACED] = QueueShed("no", why=why, retry_after_s=7.0)
    answer = await chat(client)
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "7")
    assert error_of(answer)["code"] == "overloaded"


async def test_a_key_has_no_more_in_flight_than_it_may(bench: Bench) -> None:
    async with serving(bench, key("k", max_in_flight=2), key("other")) as client:
        bench.dispatcher.hold_at = 0
        running = asyncio.create_task(ask(client, "k", n=2), name="running")
        await soon(lambda: bench.dispatcher.num_active == 2)
        assert (await ask(client, "k")).status_code == 429
        bench.dispatcher.release.set()
        assert (await ask(client, "other")).status_code == 200
        assert (await running).status_code == 200
        too_many = await ask(client, "k", n=3)
        assert too_many.status_code == 400 and error_of(too_many)["param"] == "n"
        vectors = await ask(client, "k", "/v1/embeddings", input=["a", "b", "c"])
        assert vectors.status_code == 200
