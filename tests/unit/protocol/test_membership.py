"""Against a real redis-server that is killed and comes back empty."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from support.eventually import soon
from support.redis_server import RedisServer, redis_server
from support.words import beat, registration

from protocol.blocks import BlockChange, ChangeKind, unpack_hashes
from protocol.ids import BlockHash, Epoch, WorkerId
from protocol.membership import Membership, Roster, watch_workers
from protocol.store.workers import Store

WORKER, EPOCH = WorkerId("decode-0"), Epoch(1)
STEPS: list[tuple[ChangeKind, Sequence[int]]] = [
    ("stored", range(4)), ("stored", range(4, 9)), ("evicted", (8, 7)), ("evicted", (6,)),
    ("stored", (6, 7)), ("stored", range(20, 200)), ("stored", (8,)),
    ("evicted", range(199, 19, -1)),
]  # fmt: skip
"""Of chains that begin at 0 and at 20."""


def hashes(*numbers: int) -> list[BlockHash]:
    return [BlockHash(number.to_bytes(16, "little")) for number in numbers]


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


@asynccontextmanager
async def member(store: Store, *, max_waiting_hashes: int = 1000) -> AsyncIterator[Membership]:
    membership = Membership(
        store,
        worker=WORKER,
        epoch=EPOCH,
        interval_s=0.05,
        max_waiting_hashes=max_waiting_hashes,
    )
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(membership.run(registration(), beat), name="membership")
        yield membership
        task.cancel()


async def published(store: Store, *numbers: int) -> None:
    """Waits until Redis holds exactly these blocks."""

    async def holds() -> bool:
        snapshot = await store.snapshot(WORKER, EPOCH)
        if snapshot is None:
            return False
        return sorted(unpack_hashes(snapshot.packed_hashes)) == sorted(hashes(*numbers))

    await soon(holds, what=f"blocks {numbers} published")


def test_a_worker_is_registered_while_it_runs_and_gone_when_it_left() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:
            await soon(lambda: _registered(store))
            await published(store)
        await membership.leave()
        assert await store.list_workers() == ()
        assert await store.snapshot(WORKER, EPOCH) is None

    run(test)


async def _registered(store: Store) -> bool:
    return [record.registration for record in await store.list_workers()] == [registration()]


def test_changes_from_another_thread_add_up_in_redis() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:

            def change() -> None:
                for number in range(100):
                    membership.record([BlockChange(kind="stored", hashes=hashes(number))])
                membership.record([BlockChange(kind="evicted", hashes=hashes(*range(2, 100)))])

            thread = threading.Thread(target=change)
            thread.start()
            await published(store, 0, 1)
            thread.join()

            membership.record([BlockChange(kind="cleared")])
            await published(store)

    run(test)


def test_events_follow_each_other_without_a_gap_once_published() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:
            await published(store)
            after = await store.last_event_id()
            for number in range(5):
                membership.record([BlockChange(kind="stored", hashes=hashes(number))])
                await published(store, *range(number + 1))
            _, events = await store.read_events(after)
            sequences = [event.sequence for event in events]
            assert sequences == list(range(sequences[0], sequences[0] + 5))

    run(test)


def test_a_redis_that_came_back_empty_is_filled_again_and_readers_see_a_gap() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:
            membership.record([BlockChange(kind="stored", hashes=hashes(1, 2))])
            await published(store, 1, 2)
            before = await store.snapshot(WORKER, EPOCH)
            server.kill()
            await soon(lambda: not membership.store_is_up)
            membership.record([BlockChange(kind="evicted", hashes=hashes(1))])

            server.start()
            await published(store, 2)
            await soon(lambda: _registered(store))
            await soon(lambda: membership.store_is_up)
            after = await store.snapshot(WORKER, EPOCH)
            assert before is not None and after is not None
            assert after.sequence > before.sequence + 1

    run(test)


def test_a_redis_restarted_between_two_publications_is_not_left_with_half_a_set() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:
            membership.record([BlockChange(kind="stored", hashes=hashes(1))])
            await published(store, 1)
            with server.client() as redis:
                redis.flushall()
            membership.record([BlockChange(kind="stored", hashes=hashes(2))])
            await published(store, 1, 2)

    run(test)


def test_changes_of_one_kind_that_wait_together_are_one_event() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:
            await published(store)
            after = await store.last_event_id()
            kinds: list[ChangeKind] = ["stored", "stored", "stored", "evicted", "stored"]
            changes = enumerate(kinds, start=1)
            membership.record([BlockChange(kind=k, hashes=hashes(n)) for n, k in changes])
            await published(store, 1, 2, 3, 5)
            _, events = await store.read_events(after)
            told = [(event.kind, unpack_hashes(event.packed_hashes)) for event in events]
            assert told == [
                ("stored", hashes(1, 2, 3)),
                ("evicted", hashes(4)),
                ("stored", hashes(5)),
            ]

    run(test)


def test_events_that_were_joined_lead_from_one_set_that_was_to_another() -> None:
    """So whatever held after each change, for instance that no block is there without its parent,
    holds after each event."""

    async def test(server: RedisServer, store: Store) -> None:
        async with member(store) as membership:
            await published(store)
            after = await store.last_event_id()
            were, held = [set[int]()], set[int]()
            for kind, numbers in STEPS:
                held = held | set(numbers) if kind == "stored" else held - set(numbers)
                were.append(held)
                membership.record([BlockChange(kind=kind, hashes=tuple(hashes(*numbers)))])
            await published(store, *held)
            _, events = await store.read_events(after)
            assert len(events) < len(STEPS)
            told: set[BlockHash] = set()
            for event in events:
                blocks = set(unpack_hashes(event.packed_hashes))
                told = told | blocks if event.kind == "stored" else told - blocks
                assert told in [set(hashes(*numbers)) for numbers in were]

    run(test)


def test_more_events_than_may_wait_become_a_rewrite() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store, max_waiting_hashes=10) as membership:
            await published(store)
            server.kill()
            await soon(lambda: not membership.store_is_up)
            for number in range(50):
                membership.record([BlockChange(kind="stored", hashes=hashes(number))])
            assert membership.num_dropped_events >= 4  # of ten blocks each, joined
            assert membership.num_waiting_events <= 1

            server.start()
            await published(store, *range(50))

    run(test)


def test_a_router_keeps_the_workers_it_knew_while_redis_is_away() -> None:
    async def test(server: RedisServer, store: Store) -> None:
        async with member(store):
            await soon(lambda: _registered(store))
        watch = watch_workers(store, interval_s=0.01)
        assert await anext(watch) == Roster(workers=(registration(),))
        server.kill()
        for _ in range(3):
            assert await anext(watch) == Roster(workers=(registration(),))
        server.start()
        async for roster in watch:
            if roster == Roster():
                break
        await watch.aclose()  # type: ignore[attr-defined]

    run(test)
