"""The feed against a real Redis that comes and goes, written to by a real worker's membership."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from support.eventually import soon
from support.fake_cluster import FakeCluster, fake_cluster
from support.redis_server import RedisServer, redis_server

from protocol.blocks import BlockChange
from protocol.ids import BlockHash
from protocol.membership import Membership
from protocol.store.address import RedisAddress
from protocol.store.workers import BlockEvent, Store
from router.prefix.dict_table import DictTable
from router.prefix.prefix_index import PrefixIndex
from router.prefix.state import IndexState
from router.workers.index_feed import IndexFeed

CHAIN = [BlockHash(bytes([n]) * 16) for n in range(4)]


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Fed:
    """A cluster of one decode worker, its membership, and a feed that reads the same Redis."""

    def __init__(self, cluster: FakeCluster, store: Store) -> None:
        self.cluster = cluster
        self.store = store
        self.worker = cluster.workers["decode-0"]
        self.membership = Membership(
            store, worker=self.worker.id, epoch=self.worker.registration.epoch, interval_s=0.05
        )
        self.feed = IndexFeed(
            store=store,
            index=cluster.index,
            registry=cluster.registry,
            metrics=cluster.metrics,
            wait_s=0.05,
        )
        self.feed.reconcile()

    @property
    def redis(self) -> str:
        return self.feed.redis

    def stored(self, *blocks: BlockHash) -> None:
        self.membership.record([BlockChange(kind="stored", hashes=blocks)])

    def depth(self) -> int:
        """Of the chain, as the index of the moment has it for the worker."""
        index = self.cluster.index
        slot = index.slot_of(self.worker.id)
        assert slot is not None
        return int(index.depths(b"".join(CHAIN), now=0)[slot])

    async def until_exact(self, *, depth: int) -> None:
        await soon(
            lambda: self.cluster.index.state is IndexState.EXACT and self.depth() == depth,
            what=f"exact with {depth} blocks",
        )


@asynccontextmanager
async def fed(redis: RedisServer, *, max_blocks: int = 100_000) -> AsyncIterator[Fed]:
    async with fake_cluster(decode=1) as cluster:
        cluster.index = PrefixIndex(max_blocks=max_blocks)
        store = Store(redis.address)
        made = Fed(cluster, store)
        try:
            async with asyncio.TaskGroup() as tasks:
                present = made.membership.run(made.worker.registration, made.worker.beat)
                running = [
                    tasks.create_task(present, name="membership"),
                    tasks.create_task(made.feed.run(), name="feed"),
                ]
                yield made
                for task in running:
                    task.cancel()
        finally:
            await store.close()


def test_blocks_a_worker_stores_and_evicts_reach_the_index(redis: RedisServer) -> None:
    async def test() -> None:
        async with fed(redis) as made:
            await made.until_exact(depth=0)
            made.stored(*CHAIN)
            await made.until_exact(depth=4)
            made.membership.record([BlockChange(kind="evicted", hashes=CHAIN[3:])])
            await made.until_exact(depth=3)

    run(test)


def test_a_router_that_starts_late_reads_the_snapshot(redis: RedisServer) -> None:
    async def test() -> None:
        async with fed(redis) as made:
            made.stored(*CHAIN)
            await made.until_exact(depth=4)
            late = type(made.cluster.index)()
            made.cluster.index = late
            feed = IndexFeed(
                store=made.store,
                index=late,
                registry=made.cluster.registry,
                metrics=made.cluster.metrics,
                wait_s=0.05,
            )
            feed.reconcile()
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(feed.run(), name="late feed")
                await made.until_exact(depth=4)
                running.cancel()

    run(test)


def test_a_gap_is_seen_and_mended_by_the_snapshot(redis: RedisServer) -> None:
    async def test() -> None:
        async with fed(redis) as made:
            made.stored(*CHAIN[:2])
            await made.until_exact(depth=2)
            metrics = made.cluster.metrics.registry
            lie = BlockEvent(
                worker=made.worker.id,
                epoch=made.worker.epoch,
                sequence=1_000,
                kind="evicted",
                packed_hashes=b"".join(CHAIN[:1]),
            )
            await made.store.publish([lie], ttl_s=5)
            await soon(lambda: metrics.get_sample_value("baton_prefix_index_gaps_total") == 1)
            await soon(lambda: made.cluster.index.state is IndexState.EXACT)

    run(test)


def test_what_there_is_no_room_for_is_counted_and_said_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with fed(redis, max_blocks=1024) as made:
            await made.until_exact(depth=0)
            for part in range(11):
                made.stored(*[BlockHash(n.to_bytes(16, "big")) for n in range(part, 1_100, 11)])
            metrics = made.cluster.metrics.registry
            refused = "baton_prefix_index_refused_blocks_total"
            await soon(lambda: metrics.get_sample_value(refused) == 76)
            assert made.cluster.index.state is IndexState.DEGRADED
        assert [record.message for record in caplog.records].count("index full") == 1

    run(test)


def test_redis_killed_degrades_and_redis_back_empty_is_exact_again(redis: RedisServer) -> None:
    async def test() -> None:
        async with fed(redis) as made:
            made.stored(*CHAIN[:2])
            await made.until_exact(depth=2)
            redis.kill()
            await soon(lambda: made.cluster.index.state is IndexState.DEGRADED)
            assert made.redis == "lost"
            assert made.depth() == 2
            made.stored(*CHAIN[2:])
            redis.start()
            await made.until_exact(depth=4)
            assert made.redis == "connected"

    run(test)


def test_a_worker_that_is_gone_is_forgotten_at_once(redis: RedisServer) -> None:
    async def test() -> None:
        async with fed(redis) as made:
            made.stored(*CHAIN)
            await made.until_exact(depth=4)
            made.worker.die()
            await soon(lambda: len(made.cluster.index) == 0)

    run(test)


class ClosedSlots(DictTable):
    """Remembers which it was told of."""

    def __init__(self) -> None:
        super().__init__(max_blocks=1024)
        self.slots: set[int] = set()

    def set_closed(self, slot: int, is_closed: bool) -> None:
        super().set_closed(slot, is_closed)
        (self.slots.add if is_closed else self.slots.discard)(slot)


def test_of_workers_that_say_so_it_is_believed_that_they_are_prefix_closed() -> None:
    async def test() -> None:
        async with fake_cluster(decode=2) as cluster:
            one, other = cluster.registry.workers
            one.registration = msgspec.structs.replace(one.registration, is_prefix_closed=True)
            table = ClosedSlots()
            index = PrefixIndex(table=table)
            feed = IndexFeed(
                store=Store(RedisAddress(url="redis://127.0.0.1:1")),
                index=index,
                registry=cluster.registry,
                metrics=cluster.metrics,
            )
            feed.reconcile()
            assert not table.slots
            index.load_snapshot(other.id, other.epoch, sequence=0, packed=b"")
            assert not table.slots
            index.load_snapshot(one.id, one.epoch, sequence=0, packed=b"")
            assert len(table.slots) == 1
            index.doubt_all()
            assert not table.slots

    run(test)
