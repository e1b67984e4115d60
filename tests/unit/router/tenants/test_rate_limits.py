"""Limits by the minute, kept by several routers together: real Redis, virtual time."""

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
from support.limit_twin import LimitTwin
from support.redis_server import RedisServer, redis_server

from protocol.errors import StoreError
from protocol.process.metrics import RouterMetrics
from protocol.store.limits import LimitStore
from protocol.store.shares import Renewal, ShareRequest
from router.tenants.allowance import LEASE_S
from router.tenants.api_key import ApiKey, key_digest
from router.tenants.limit_reached import LimitKind, LimitReached
from router.tenants.rate_limits import MOST_AT_ONCE, Charge, RateLimits, ShareStore

STEP_S = 0.1
PER_MINUTE = 1_200


def key(requests: int | None = PER_MINUTE, tokens: int | None = None) -> ApiKey:
    return ApiKey(
        digest=key_digest(b"k"), tenant="t", requests_per_minute=requests, tokens_per_minute=tokens
    )


class Away:
    """A store that may not answer."""

    def __init__(self, store: ShareStore) -> None:
        self._store = store
        self.is_away = False
        self.sizes: list[int] = []
        """Limits of each call."""

    async def renew(
        self,
        router: str,
        requests: list[ShareRequest],
        *,
        ttl_s: float,
        begun_s: float,
        now: float | None = None,
    ) -> Renewal:
        if self.is_away:
            raise StoreError("Redis: away")
        self.sizes.append(len(requests))
        return await self._store.renew(router, requests, ttl_s=ttl_s, begun_s=begun_s, now=now)


class Fleet:
    """Routers before one store, and their virtual clock."""

    def __init__(self, store: ShareStore | None) -> None:
        self.now = 5_000.03
        self.store = None if store is None else Away(store)
        self.metrics = RouterMetrics()
        self.routers: dict[str, RateLimits] = {}
        self.admitted: list[tuple[float, int]] = []
        self.refused: list[LimitReached] = []

    def add(self, *names: str) -> list[RateLimits]:
        for name in names:
            self.routers[name] = RateLimits(
                router=name, store=self.store, metrics=self.metrics, clock=lambda: self.now
            )
        return [self.routers[name] for name in names]

    async def ask(
        self, router: RateLimits, num: int = 1, *, kind: LimitKind = "requests", of: ApiKey
    ) -> Charge | None:
        """As a request does; renewed when it has to wait."""
        task = asyncio.create_task(router.charge(of, kind, num), name="charge")
        for _ in range(4):
            await asyncio.sleep(0)
            if task.done():
                break
            await router.renew(now=self.now)
        try:
            charge = await asyncio.wait_for(task, 5)
        except LimitReached as error:
            self.refused.append(error)
            return None
        self.admitted.append((self.now, num))
        return charge

    async def load(
        self,
        seconds: float,
        demand: Sequence[tuple[str, int]],
        *,
        of: ApiKey | None = None,
        num: int = 1,
        kind: LimitKind = "requests",
    ) -> None:
        """`demand`: of each router so many requests in every step."""
        of = of or key()
        for step in range(round(seconds / STEP_S)):
            self.now += STEP_S
            for name, times in demand:
                for _ in range(times):
                    await self.ask(self.routers[name], num, kind=kind, of=of)
            if step % round(LEASE_S / STEP_S) == 0:
                for name, _ in demand:
                    await self.routers[name].renew(now=self.now)

    def most_in_a_minute(self) -> int:
        """Of all spans of 60 seconds."""
        times = [at for at, _ in self.admitted]
        totals = [0, *accumulate(num for _, num in self.admitted)]
        ends = ((bisect_left(times, at + 60.0 - 1e-6), first) for first, at in enumerate(times))
        return max(totals[end] - totals[first] for end, first in ends)

    def used_between(self, start: float, end: float) -> int:
        return sum(num for at, num in self.admitted if start <= at < end)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def run(server: RedisServer, test: Callable[[Fleet], Awaitable[None]]) -> None:
    async def bounded() -> None:
        store = LimitStore(server.address, deadline_s=5.0)
        with server.client() as redis:
            redis.flushall()
        try:
            async with asyncio.timeout(60):
                await test(Fleet(store))
        finally:
            await store.close()

    asyncio.run(bounded())


def test_routers_keep_one_limit_within_five_percent_whatever_their_parts_of_the_demand(
    server: RedisServer,
) -> None:
    async def test(fleet: Fleet) -> None:
        fleet.add("a", "b", "c")
        begun = fleet.now
        await fleet.load(60, [("a", 1), ("b", 2), ("c", 4)])
        await fleet.load(60, [("a", 4), ("b", 2)])
        assert fleet.most_in_a_minute() <= PER_MINUTE
        for minute in (0, 1):
            used = fleet.used_between(begun + 60 * minute, begun + 60 * (minute + 1))
            assert used >= 0.95 * PER_MINUTE

    run(server, test)


def test_a_demand_below_the_limit_is_never_refused() -> None:
    async def test() -> None:
        fleet = Fleet(LimitTwin())
        fleet.add("a", "b", "c")
        for _ in range(12):
            await fleet.load(10, [("a", 1)])  # 600 a minute
            await fleet.load(5, [("b", 1), ("c", 1)])
        assert fleet.refused == [] and len(fleet.admitted) == 12 * (100 + 100)

    asyncio.run(test())


def test_a_router_that_is_killed_gives_its_part_back(server: RedisServer) -> None:
    async def test(fleet: Fleet) -> None:
        fleet.add("killed", "b")
        await fleet.load(60, [("killed", 4), ("b", 4)])
        del fleet.routers["killed"]
        killed_at = fleet.now
        await fleet.load(120, [("b", 4)])
        assert fleet.most_in_a_minute() <= PER_MINUTE
        assert fleet.used_between(killed_at + 60, killed_at + 120) >= 0.95 * PER_MINUTE

    run(server, test)


def test_tokens_not_used_are_given_back_to_when_they_were_charged() -> None:
    async def test() -> None:
        fleet, of = Fleet(LimitTwin()), key(None, 10_000)
        (router,) = fleet.add("a")
        charge = await fleet.ask(router, 9_000, kind="tokens", of=of)
        assert charge is not None
        assert await fleet.ask(router, 5_000, kind="tokens", of=of) is None
        fleet.now += 30
        charge.settle(500)
        assert await fleet.ask(router, 9_500, kind="tokens", of=of)
        fleet.now += 31.5  # the first 500 are a minute old
        assert await fleet.ask(router, 500, kind="tokens", of=of)
        assert await fleet.ask(router, 1, kind="tokens", of=of) is None

    asyncio.run(test())


def test_more_than_was_charged_is_used_whether_there_is_room_or_not() -> None:
    async def test() -> None:
        fleet, of = Fleet(LimitTwin()), key(None, 10_000)
        (router,) = fleet.add("a")
        charge = await fleet.ask(router, 1_000, kind="tokens", of=of)
        assert charge is not None
        charge.settle(12_000)
        fleet.now += 1
        assert await fleet.ask(router, 1, kind="tokens", of=of) is None

    asyncio.run(test())


def test_when_to_come_back_is_told_as_it_will_be() -> None:
    async def test() -> None:
        fleet, of = Fleet(LimitTwin()), key(10)
        (router,) = fleet.add("a")
        for _ in range(10):
            assert await fleet.ask(router, of=of)
            fleet.now += 2
        for num in (1, 3):
            assert await fleet.ask(router, num, of=of) is None
            wait_s = fleet.refused[-1].retry_after_s
            assert wait_s is not None and 0 < wait_s <= 46
            fleet.now += wait_s + 1
            assert await fleet.ask(router, num, of=of)

    asyncio.run(test())


def test_what_a_minute_never_allows_is_refused_for_good() -> None:
    async def test() -> None:
        fleet, of = Fleet(LimitTwin()), key(None, 100)
        (router,) = fleet.add("a")
        assert await fleet.ask(router, 101, kind="tokens", of=of) is None
        assert fleet.refused[0].retry_after_s is None

    asyncio.run(test())


def test_what_is_refused_at_one_router_keeps_no_other_from_what_is_free(
    server: RedisServer,
) -> None:
    async def test() -> None:
        store, of = LimitStore(server.address, deadline_s=5.0), key(None, 1_000)
        a, b = (RateLimits(router=name, store=store, metrics=RouterMetrics()) for name in "ab")
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(60):
            loops = [tasks.create_task(one.run(), name="renewing") for one in (a, b)]
            await a.charge(of, "tokens", 300)
            for _ in range(3):
                with pytest.raises(LimitReached):
                    await b.charge(of, "tokens", 900)
                await a.charge(of, "tokens", 4)
            for loop in loops:
                loop.cancel()
        await store.close()

    with server.client() as redis:
        redis.flushall()
    asyncio.run(test())


def test_a_key_is_told_what_remains_of_all_routers_limits() -> None:
    async def test() -> None:
        fleet, of = Fleet(LimitTwin()), key(100, 5_000)
        a, b = fleet.add("a", "b")
        for router, num in ((a, 40), (b, 10)):
            for _ in range(num):
                await fleet.ask(router, of=of)
        await fleet.ask(b, 2_000, kind="tokens", of=of)
        told = b.standings(of)
        assert (told["requests"].limit, told["tokens"].limit) == (100, 5_000)
        assert 45 <= told["requests"].remaining <= 50
        assert told["tokens"].remaining == 3_000 and 59 <= told["tokens"].reset_s <= 61

    asyncio.run(test())


def test_without_redis_each_enforces_its_equal_part(server: RedisServer) -> None:
    async def test(fleet: Fleet) -> None:
        assert fleet.store is not None
        for router in fleet.add("a", "b", "c"):
            await router.renew(now=fleet.now)
        for router in fleet.routers.values():
            await router.renew(now=fleet.now)
        fleet.store.is_away = True
        begun = fleet.now
        await fleet.load(60, [("a", 4), ("b", 4), ("c", 4)])
        assert 0.95 * PER_MINUTE <= fleet.used_between(begun, begun + 61) <= PER_MINUTE
        assert fleet.metrics.registry.get_sample_value("baton_router_limits_leased") == 0
        fleet.store.is_away = False
        await fleet.load(60, [("a", 4), ("b", 4)])
        assert fleet.most_in_a_minute() <= 1.05 * PER_MINUTE
        assert fleet.metrics.registry.get_sample_value("baton_router_limits_leased") == 1

    run(server, test)


def test_a_router_without_a_store_is_alone() -> None:
    async def test() -> None:
        fleet, of = Fleet(None), key(5)
        (router,) = fleet.add("a")
        assert [bool(await fleet.ask(router, of=of)) for _ in range(6)] == [True] * 5 + [False]

    asyncio.run(test())


def test_redis_that_comes_back_empty_learns_what_was_used(server: RedisServer) -> None:
    async def test(fleet: Fleet) -> None:
        fleet.add("a", "b")
        await fleet.load(30, [("a", 4), ("b", 4)])
        with server.client() as redis:
            redis.flushall()
        for router in fleet.routers.values():
            await router.renew(now=fleet.now)
        await fleet.load(60, [("a", 4), ("b", 4)])
        assert fleet.most_in_a_minute() <= 1.05 * PER_MINUTE

    run(server, test)


def test_redis_is_never_asked_for_thousands_of_limits_in_one_call() -> None:
    async def test() -> None:
        fleet = Fleet(LimitTwin())
        (router,), keys = (
            fleet.add("a"),
            [replace(key(), digest=key_digest(b"%d" % n)) for n in range(300)],
        )
        assert fleet.store is not None
        asking = [asyncio.create_task(router.charge(of, "requests", 1)) for of in keys]
        await asyncio.sleep(0)
        await router.renew(now=fleet.now)
        assert all(await asyncio.gather(*asking))
        assert sum(fleet.store.sizes) == 300
        assert max(fleet.store.sizes) <= MOST_AT_ONCE

    asyncio.run(test())
