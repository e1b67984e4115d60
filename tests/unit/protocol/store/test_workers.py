"""Against a real redis-server."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from support.eventually import soon
from support.redis_server import RedisServer, redis_server
from support.words import beat, registration

from protocol.blocks import unpack_hashes
from protocol.errors import SettingsError, StoreError
from protocol.ids import BlockHash, Epoch, RouterId, WorkerId
from protocol.store.address import RedisAddress
from protocol.store.workers import (
    STREAM_START,
    BlockEvent,
    Members,
    RouterRecord,
    Snapshot,
    Store,
    WorkerRecord,
)

WORKER, EPOCH = WorkerId("decode-0"), Epoch(1)


def block_hash(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "little"))


def packed(*numbers: int) -> bytes:
    return b"".join([block_hash(number) for number in numbers])


def stored(sequence: int, *numbers: int) -> BlockEvent:
    return BlockEvent(
        worker=WORKER,
        epoch=EPOCH,
        sequence=sequence,
        kind="stored",
        packed_hashes=packed(*numbers),
    )


def snapshot(sequence: int, *numbers: int) -> Snapshot:
    return Snapshot(sequence=sequence, packed_hashes=packed(*numbers))


def in_order(found: Snapshot | None) -> Snapshot | None:
    """With its hashes by number: a set has no order."""
    if found is None:
        return None
    numbers = [int.from_bytes(one, "little") for one in unpack_hashes(found.packed_hashes)]
    return snapshot(found.sequence, *sorted(numbers))


def record(worker: str = "decode-0", *, epoch: int = 1, running: int = 0) -> WorkerRecord:
    return WorkerRecord(
        registration=registration(worker, epoch=epoch), beat=beat(epoch=epoch, running=running)
    )


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def run(server: RedisServer, test: Callable[[Store], Awaitable[None]]) -> None:
    async def bounded() -> None:
        store = Store(server.address, deadline_s=5.0)
        try:
            async with asyncio.timeout(30):
                with server.client() as redis:
                    redis.flushall()
                    await store.rewrite([], worker=WORKER, epoch=EPOCH, sequence=0, ttl_s=60)
                    redis.delete(store.stream_key)
                await test(store)
        finally:
            await store.close()

    asyncio.run(bounded())


def test_a_registered_worker_is_listed_with_its_last_beat(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        await store.register(record("decode-1"), ttl_s=60)
        await store.register(record("decode-0", running=1), ttl_s=60)
        await store.register(record("decode-0", running=2), ttl_s=60)
        assert await store.list_workers() == (record("decode-0", running=2), record("decode-1"))

    run(server, test)


def test_a_worker_that_stops_registering_is_gone_after_its_time_to_live(
    server: RedisServer,
) -> None:
    async def test(store: Store) -> None:
        await store.register(record(), ttl_s=0.1)
        await store.publish([stored(1, 1)], ttl_s=0.1)

        async def gone() -> bool:
            snapshot = await store.snapshot(WORKER, EPOCH)
            return await store.list_workers() == () and snapshot is None

        await soon(gone)

    run(server, test)


def test_a_worker_that_leaves_takes_its_blocks_with_it_but_not_its_successor(
    server: RedisServer,
) -> None:
    async def test(store: Store) -> None:
        assert await store.publish([stored(1, 1)], ttl_s=60)
        await store.register(record(epoch=2), ttl_s=60)
        await store.deregister(WORKER, EPOCH)
        assert await store.snapshot(WORKER, EPOCH) is None
        assert await store.list_workers() == (record(epoch=2),)

        await store.deregister(WORKER, Epoch(2))
        assert await store.list_workers() == ()

    run(server, test)


def test_members_are_found_without_a_look_at_what_others_keep(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        await store.register(record(), ttl_s=60)
        with server.client() as redis:
            redis.set("worker:of-others", b"1")
            redis.config_resetstat()
            assert await store.list_workers() == (record(),)
            used = redis.info("commandstats")
        assert not {"cmdstat_scan", "cmdstat_keys"} & used.keys()

    run(server, test)


def test_the_dead_are_forgotten_by_who_lists_them_and_may_come_back(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        router = RouterRecord(router=RouterId("r"), wires=(8,))
        await store.register_router(router, ttl_s=60)
        await store.register(record(), ttl_s=0.1)

        async def gone() -> bool:
            return await store.list_workers() == ()

        await soon(gone)
        with server.client() as redis:
            assert redis.smembers("members") == {b"router:r"}
            await store.register(record(), ttl_s=60)
            assert await store.list_members() == Members(workers=(record(),), routers=(router,))
            redis.flushall()
        await store.register(record(), ttl_s=60)
        assert await store.list_workers() == (record(),)

    run(server, test)


def test_a_record_that_cannot_be_read_is_left_out(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        with server.client() as redis:
            redis.set("worker:bad", b"\xc1")
            redis.sadd("members", "worker:bad", b"\xff")
        await store.register(record(), ttl_s=60)
        assert await store.list_workers() == (record(),)

    run(server, test)


def test_the_snapshot_is_what_its_events_add_up_to(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        evicted = BlockEvent(
            worker=WORKER,
            epoch=EPOCH,
            sequence=2,
            kind="evicted",
            packed_hashes=b"".join([block_hash(1)]),
        )
        await store.publish([stored(1, 1, 2), evicted], ttl_s=60)
        await store.publish([stored(3, 3)], ttl_s=60)
        assert in_order(await store.snapshot(WORKER, EPOCH)) == snapshot(3, 2, 3)

        cleared = BlockEvent(
            worker=WORKER, epoch=EPOCH, sequence=4, kind="cleared", packed_hashes=b""
        )
        await store.publish([cleared], ttl_s=60)
        assert await store.snapshot(WORKER, EPOCH) == snapshot(4)

    run(server, test)


def test_a_member_of_a_snapshot_that_is_no_hash_is_left_out(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        await store.rewrite([block_hash(1)], worker=WORKER, epoch=EPOCH, sequence=2, ttl_s=60)
        with server.client() as redis:
            redis.sadd(store.blocks_key(WORKER, EPOCH), b"short", b"longer than a hash is")
        assert await store.snapshot(WORKER, EPOCH) == snapshot(2, 1)

    run(server, test)


def test_events_are_read_in_order_from_where_the_reader_stopped(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        assert await store.last_event_id() == STREAM_START
        await store.publish([stored(1, 1), stored(2, 2)], ttl_s=60)
        after, events = await store.read_events(STREAM_START)
        assert events == (stored(1, 1), stored(2, 2))
        assert after == await store.last_event_id()

        assert await store.read_events(after, block_s=0.01) == (after, ())
        await store.publish([stored(3, 3)], ttl_s=60)
        _, events = await store.read_events(after)
        assert events == (stored(3, 3),)

    run(server, test)


def test_an_event_that_cannot_be_read_is_passed_over(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        with server.client() as redis:
            redis.xadd(store.stream_key, {"e": b"\xc1"})
            redis.xadd(store.stream_key, {"other": b"1"})
        await store.publish([stored(1, 1)], ttl_s=60)
        _, events = await store.read_events(STREAM_START)
        assert events == (stored(1, 1),)

    run(server, test)


def test_a_rewritten_snapshot_replaces_the_set_and_shows_readers_a_gap(
    server: RedisServer,
) -> None:
    async def test(store: Store) -> None:
        await store.publish([stored(1, 1)], ttl_s=60)
        after = await store.last_event_id()
        many = [block_hash(number) for number in range(10_000)]
        await store.rewrite(many, worker=WORKER, epoch=EPOCH, sequence=3, ttl_s=60)

        assert in_order(await store.snapshot(WORKER, EPOCH)) == snapshot(3, *range(10_000))
        _, events = await store.read_events(after)
        assert events == (stored(3),)

    run(server, test)


def test_events_without_a_snapshot_ask_for_a_rewrite(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        with server.client() as redis:
            redis.flushall()
        assert not await store.publish([stored(7, 1)], ttl_s=60)
        assert await store.snapshot(WORKER, EPOCH) is None

        await store.rewrite([block_hash(1)], worker=WORKER, epoch=EPOCH, sequence=9, ttl_s=60)
        assert await store.publish([stored(10, 2)], ttl_s=60)

    run(server, test)


def test_every_key_of_a_worker_has_a_time_to_live(server: RedisServer) -> None:
    async def test(store: Store) -> None:
        await store.register(record(), ttl_s=60)
        await store.publish([stored(1, 1)], ttl_s=60)
        await store.rewrite([block_hash(1)], worker=WORKER, epoch=EPOCH, sequence=3, ttl_s=60)
        with server.client() as redis:
            left_ms = {key: redis.pttl(key) for key in redis.scan_iter()}
        assert store.blocks_key(WORKER, EPOCH).encode() in left_ms
        assert all(left > 0 for key, left in left_ms.items() if key != store.stream_key.encode())

    run(server, test)


def test_a_redis_that_is_away_is_a_store_error_and_its_return_is_noticed() -> None:
    async def test(store: Store) -> None:
        own.kill()
        for call in (store.ping, store.list_workers, store.last_event_id):
            with pytest.raises(StoreError):
                await call()
        with pytest.raises(StoreError):
            await store.publish([stored(1, 1)], ttl_s=60)

        own.start()
        await store.ping()
        assert await store.sequence(WORKER, EPOCH) is None

    with redis_server() as own:
        run(own, test)


def test_a_redis_that_accepts_and_says_nothing_is_a_store_error() -> None:
    async def test() -> None:
        silent = await asyncio.start_server(_say_nothing, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        store = Store(RedisAddress(url=f"redis://127.0.0.1:{port}/0"), deadline_s=0.1)
        async with silent:
            with pytest.raises(StoreError, match="did not answer"):
                await store.ping()
            await store.close()

    asyncio.run(test())


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1024):
        pass
    writer.close()


@pytest.mark.parametrize("url", ["localhost:6379", "redis://h:nope/0", "redis://h/0?such=option"])
def test_an_address_that_is_none_of_a_redis_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^redis: "):
        Store(RedisAddress(url=url))
