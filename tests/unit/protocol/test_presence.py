"""Entries of routers and of workers that load, in a real Redis that is killed and comes back."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.eventually import soon
from support.redis_server import RedisServer, redis_server
from support.words import beat, registration

import protocol.membership
from protocol.codec import SPOKEN_VERSIONS
from protocol.errors import StoreError
from protocol.ids import Epoch, RouterId
from protocol.membership import Membership, Roster, watch_workers
from protocol.presence import ComingPresence, RouterPresence
from protocol.store.workers import ComingWorker, Members, RouterRecord, Store, WorkerRecord

ROUTER = RouterRecord(router=RouterId("router-0"), wires=SPOKEN_VERSIONS)
COMING = ComingWorker(worker=registration().worker, role="decode", model="tiny")


def run(test: Callable[[RedisServer, Store], Awaitable[None]]) -> None:
    async def bounded(server: RedisServer) -> None:
        store = Store(server.address, deadline_s=5.0)
        try:
            async with asyncio.timeout(60):
                await test(server, store)
        finally:
            await store.close()

    with redis_server() as server:
        asyncio.run(bounded(server))


def test_a_router_is_listed_while_it_serves_and_no_longer() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        presence = RouterPresence(store, ROUTER, interval_s=0.05)
        running = asyncio.create_task(presence.run(), name="presence")

        async def listed() -> bool:
            try:
                return await store.list_routers() == (ROUTER,)
            except StoreError:
                return False

        await soon(listed)
        server.kill()
        server.start()  # empty
        await soon(listed)
        running.cancel()
        await presence.leave()
        assert await store.list_routers() == ()

    run(test)


def test_a_router_that_is_killed_is_listed_for_a_short_while_only() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        await store.register_router(ROUTER, ttl_s=0.1)

        async def gone() -> bool:
            return await store.list_routers() == ()

        await soon(gone)

    run(test)


def test_a_worker_comes_until_it_is_registered_and_never_both() -> None:
    """As a router sees it: at no moment it is nothing."""

    async def test(server: RedisServer, store: Store) -> None:
        record = WorkerRecord(registration=registration(), beat=beat())
        async with ComingPresence(store, COMING, interval_s=0.05) as coming:
            watch = watch_workers(store, interval_s=0.01)
            async for roster in watch:
                if roster == Roster(coming=(COMING,)):
                    break
            await coming.end()
            assert await anext(watch) == Roster(coming=(COMING,))
            await store.register(record, ttl_s=60)
            assert await store.list_members() == Members(workers=(record,))
            await watch.aclose()  # type: ignore[attr-defined]
        assert await store.list_members() == Members(workers=(record,))

    run(test)


def test_a_worker_that_ends_while_it_loads_comes_no_more() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async def comes() -> bool:
            return (await store.list_members()).coming == (COMING,)

        with pytest.raises(RuntimeError, match="no such weights"):
            async with ComingPresence(store, COMING, interval_s=0.05):
                await soon(comes)
                raise RuntimeError("no such weights")
        assert not await comes()

    run(test)


def test_a_mistake_while_it_says_that_it_comes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async def announce(*_: object, **__: object) -> None:
            raise TypeError("a mistake")

        monkeypatch.setattr(store, "announce", announce)
        with pytest.raises(TypeError, match="a mistake"):
            async with ComingPresence(store, COMING):
                await asyncio.Event().wait()

    run(test)


def test_workers_and_routers_are_listed_apart_and_what_cannot_be_read_is_left_out() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        with server.client() as redis:
            for kind in ("worker", "router", "coming", "wander", "corner"):
                redis.set(f"{kind}:bad", b"\xc1")
                redis.sadd("members", f"{kind}:bad", f"{kind}:gone")
        record = WorkerRecord(registration=registration(), beat=beat())
        await store.register(record, ttl_s=60)
        await store.register_router(ROUTER, ttl_s=60)
        other = ComingWorker(worker=registration("decode-1").worker, role="decode", model="")
        await store.announce(other, ttl_s=60)
        members = Members(workers=(record,), coming=(other,), routers=(ROUTER,))
        assert await store.list_members() == members

    run(test)


def test_a_worker_asks_who_serves_when_it_is_registered_and_hears_when_redis_is_away() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        await store.register_router(ROUTER, ttl_s=60)
        here = registration()
        membership = Membership(store, worker=here.worker, epoch=Epoch(here.epoch))
        asked = asyncio.create_task(membership.list_routers(), name="asked")
        await asyncio.sleep(0)
        running = asyncio.create_task(membership.run(here, beat), name="membership")
        assert await asked == (ROUTER,)
        server.kill()
        with pytest.raises(StoreError):
            await membership.list_routers()
        running.cancel()

    run(test)


def test_a_worker_that_starts_before_redis_asks_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis that was never there is not one that is away."""
    monkeypatch.setattr(protocol.membership, "REGISTERED_S", 0.02)

    async def test(server: RedisServer, store: Store) -> None:
        server.kill()
        here = registration()
        membership = Membership(store, worker=here.worker, epoch=Epoch(here.epoch), interval_s=0.05)
        running = asyncio.create_task(membership.run(here, beat), name="membership")
        asked = asyncio.create_task(membership.list_routers(), name="asked")
        await soon(lambda: not membership.store_is_up)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asked), 0.3)
        server.start()
        assert await asked == ()
        assert await store.list_workers() != ()
        running.cancel()

    run(test)
