"""Shares of limits in a real redis-server, beside their twin."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.limit_twin import LimitTwin
from support.redis_server import RedisServer, redis_server

from protocol.errors import StoreError
from protocol.store.address import RedisAddress
from protocol.store.limits import LimitStore
from protocol.store.shares import NUM_SECONDS, Renewal, ShareRequest

TTL_S = 3.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def asked(want: int, *uses: int, limit: int = 100, name: str = "k", later: int = 0) -> ShareRequest:
    padded = (*(0,) * later, *uses, *(0,) * NUM_SECONDS)[:NUM_SECONDS]
    return ShareRequest(name=name, limit=limit, want=want, uses=padded)


_Call = tuple[float, str, int, list[tuple[int, int]]]
_uses = st.lists(st.tuples(st.integers(0, NUM_SECONDS - 1), st.integers(1, 30)), max_size=4)
_calls = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 1.0, 3.5, 20.0, 70.0]),
        st.sampled_from(["r1", "r2", "r3"]),
        st.integers(0, 200),
        _uses,
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=_calls)
def test_the_script_grants_what_its_twin_does(server: RedisServer, calls: list[_Call]) -> None:
    async def test() -> None:
        store, twin, now = LimitStore(server.address, deadline_s=5.0), LimitTwin(), 1_000.0
        with server.client() as redis:
            redis.flushall()
        try:
            for passed_s, router, want, used in calls:
                now += passed_s
                uses = [0] * NUM_SECONDS
                for second, number in used:
                    uses[second] += number
                requests = [asked(want, *uses), asked(want // 2, limit=40, name="other")]
                begun_s = now % 1
                ours = await store.renew(router, requests, ttl_s=TTL_S, begun_s=begun_s, now=now)
                twins = await twin.renew(router, requests, ttl_s=TTL_S, begun_s=begun_s, now=now)
                assert ours == twins
        finally:
            await store.close()

    asyncio.run(test())


def renewals(*calls: tuple[float, str, ShareRequest]) -> list[tuple[int, int]]:
    """What is held, and what is free, after each."""

    async def test() -> list[Renewal]:
        twin = LimitTwin()
        return [
            await twin.renew(router, [one], ttl_s=TTL_S, begun_s=0.0, now=now)
            for now, router, one in calls
        ]

    return [(one.shares[0].held, one.shares[0].num_free) for one in asyncio.run(test())]


def test_what_one_holds_no_other_gets() -> None:
    assert renewals((0, "a", asked(80)), (0, "b", asked(80))) == [(80, 20), (20, 0)]


def test_who_asks_again_holds_what_it_asks_for_now() -> None:
    calls = (0, "a", asked(80)), (1, "a", asked(10)), (1, "b", asked(80))
    assert renewals(*calls) == [(80, 20), (10, 90), (80, 10)]


def test_where_there_is_less_than_is_wanted_each_has_its_part() -> None:
    calls = (0, "a", asked(90)), (0, "b", asked(90)), (1, "a", asked(30, 90)), (1, "b", asked(90))
    assert renewals(*calls)[1:] == [(10, 0), (0, 0), (8, 2)]


def test_what_was_used_is_free_again_after_a_minute_and_not_before() -> None:
    calls = [
        (0.0, "a", asked(0, 100)),
        (59.9, "b", asked(10)),
        (61.1, "b", asked(10)),
    ]
    assert [held for held, _ in renewals(*calls)] == [0, 0, 10]


def test_a_router_that_is_gone_gives_back_what_it_held() -> None:
    calls = [
        (0.0, "gone", asked(70)),
        (1.0, "b", asked(100)),
        (4.0, "b", asked(100)),
        (62.9, "b", asked(100, 30, later=59)),
        (63.1, "b", asked(100, 30, later=59)),
    ]
    assert [held for held, _ in renewals(*calls)] == [70, 30, 30, 0, 70]


def test_a_lost_redis_is_an_error_of_the_store() -> None:
    async def test() -> None:
        store = LimitStore(RedisAddress(url="redis://127.0.0.1:1/0"), deadline_s=1.0)
        with pytest.raises(StoreError):
            await store.renew("a", [asked(1)], ttl_s=TTL_S, begun_s=0.0)
        await store.close()

    asyncio.run(test())


def test_redis_s_own_clock_counts_where_none_is_given(server: RedisServer) -> None:
    async def test() -> None:
        store = LimitStore(server.address, deadline_s=5.0)
        try:
            with server.client() as redis:
                redis.flushall()
            first = await store.renew("a", [asked(60)], ttl_s=TTL_S, begun_s=0.0)
            other = await store.renew("b", [asked(60)], ttl_s=TTL_S, begun_s=0.0)
        finally:
            await store.close()
        assert (first.num_routers, first.shares[0].held) == (1, 60)
        assert (other.num_routers, other.shares[0].held) == (2, 40)

    asyncio.run(test())
