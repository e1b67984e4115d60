"""Deployments that share a database, against a real redis-server: none sees, changes or counts what
is another's, and none leaves a key that does not say whose it is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest
from support.redis_server import RedisServer, redis_server
from support.words import beat, registration

from protocol.errors import StoreError
from protocol.ids import BlockHash, Epoch, WorkerId
from protocol.store.address import RedisAddress
from protocol.store.limits import LimitStore
from protocol.store.responses import KeptResponse, ResponseStore
from protocol.store.shares import NUM_SECONDS, ShareRequest
from protocol.store.workers import BlockEvent, Store, WorkerRecord

WORKER, EPOCH = WorkerId("decode-0"), Epoch(1)
HASH = BlockHash(bytes(range(16)))
MINE, THEIRS = "staging/chat:", "production/chat:"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def run(server: RedisServer, test: Callable[[RedisAddress, RedisAddress], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with server.client() as redis:
            redis.flushall()
        async with asyncio.timeout(30):
            await test(replace(server.address, prefix=MINE), replace(server.address, prefix=THEIRS))
        with server.client() as redis:
            keys = list(redis.scan_iter())
        assert keys and all(key.startswith((MINE.encode(), THEIRS.encode())) for key in keys)

    asyncio.run(bounded())


def record(running: int) -> WorkerRecord:
    return WorkerRecord(
        registration=registration(WORKER, epoch=EPOCH), beat=beat(epoch=EPOCH, running=running)
    )


def test_workers_of_one_name_and_epoch_are_two(server: RedisServer) -> None:
    async def test(mine: RedisAddress, theirs: RedisAddress) -> None:
        ours, others = Store(mine, deadline_s=5.0), Store(theirs, deadline_s=5.0)
        await ours.register(record(1), ttl_s=30)
        assert await others.list_workers() == ()
        await others.register(record(2), ttl_s=30)
        await ours.deregister(WORKER, EPOCH)
        assert await ours.list_workers() == ()
        assert await others.list_workers() == (record(2),)
        await ours.close()
        await others.close()

    run(server, test)


def test_blocks_of_one_worker_are_not_the_other_s(server: RedisServer) -> None:
    async def test(mine: RedisAddress, theirs: RedisAddress) -> None:
        ours, others = Store(mine, deadline_s=5.0), Store(theirs, deadline_s=5.0)
        event = BlockEvent(
            worker=WORKER, epoch=EPOCH, sequence=2, kind="stored", packed_hashes=HASH
        )
        await ours.rewrite([], worker=WORKER, epoch=EPOCH, sequence=1, ttl_s=30)
        assert await ours.publish([event], ttl_s=30)
        assert (await ours.read_events("0-0"))[1][-1] == event
        assert await others.sequence(WORKER, EPOCH) is None
        assert await others.snapshot(WORKER, EPOCH) is None
        assert (await others.read_events("0-0", block_s=0.01))[1] == ()
        await ours.close()
        await others.close()

    run(server, test)


def test_what_an_owner_kept_here_is_not_found_there(server: RedisServer) -> None:
    async def test(mine: RedisAddress, theirs: RedisAddress) -> None:
        ours, others = (
            ResponseStore(address, ttl_s=60, max_bytes=lambda: 1 << 20, deadline_s=5.0)
            for address in (mine, theirs)
        )
        kept = KeptResponse(response=b"{}", items=b"[]")
        assert await ours.keep("owner", "a", kept)
        assert await others.find("owner", ["a"]) == (None,)
        assert not await others.delete("owner", "a")
        assert await ours.find("owner", ["a"]) == (kept,)
        await ours.close()
        await others.close()

    run(server, test)


def test_a_limit_is_not_used_by_another_deployment(server: RedisServer) -> None:
    async def test(mine: RedisAddress, theirs: RedisAddress) -> None:
        asked = ShareRequest(name="k", limit=10, want=10, uses=(0,) * NUM_SECONDS)
        for address in (mine, theirs):
            store = LimitStore(address, deadline_s=5.0)
            told = await store.renew("router", [asked], ttl_s=3, begun_s=0.0)
            assert (told.num_routers, told.shares[0].held) == (1, 10)
            await store.close()

    run(server, test)


def test_a_name_and_a_password_open_and_a_wrong_one_does_not(server: RedisServer) -> None:
    async def test(mine: RedisAddress, theirs: RedisAddress) -> None:
        store = Store(replace(mine, username="baton", password="p@ss/word"), deadline_s=5.0)
        await store.register(record(1), ttl_s=30)
        assert len(await store.list_workers()) == 1
        await store.close()
        wrong = Store(replace(mine, username="baton", password="else"), deadline_s=5.0)
        with pytest.raises(StoreError, match="invalid username-password pair") as refused:
            await wrong.ping()
        assert "else" not in str(refused.value)
        await wrong.close()

    with server.client() as redis:
        redis.acl_setuser(
            "baton", enabled=True, passwords=["+p@ss/word"], keys=["*"], categories=["+@all"]
        )
    run(server, test)
