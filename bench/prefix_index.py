"""The prefix index of a router: memory, look-ups, events, and the longest stops.

    make bench-prefix-index          # PYTHONPATH=.:tests python -m bench.prefix_index

Each size is built in a process of its own, whose resident memory tells what a block takes. The
content is chains of 2,000 blocks (or their first 1,200), each held by four workers to different
depths and its first 100 blocks by a quarter of them all; a look-up is of a chain at random, so that
nothing of it lies in a cache. Then come 50 chains that 64 workers hold, each to another depth:
between two look-ups of those are five of others. All workers are prefix-closed; `open` is how long
it takes where they are not believed to be. Events come from a real Redis through the store's own
decoding; their times, and those of stops, are CPU seconds of this process.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
from support.redis_server import RedisServer, redis_server

from bench.record import percentiles, record
from protocol.blocks import HASH_BYTES, ChangeKind, chain_seed, packed_hashes, unpack_hashes
from protocol.ids import Epoch, WorkerId
from protocol.store.workers import BlockEvent, Store
from router.prefix.c_table import CTable
from router.prefix.prefix_index import PrefixIndex
from router.prefix.state import IndexState

MAX_BLOCKS = 10_000_000
NUM_DEEP, DEEP_WORKERS, FIRST_DEEP = 50, 64, 5_000_000_000
SIZES = (100_000, 1_000_000, MAX_BLOCKS - NUM_DEEP * 2_000)
FLEETS = (64, 1_000)
CHAIN_BLOCKS, PART_BLOCKS, SHARED_BLOCKS = 2_000, 1_200, 100
EVENT_BLOCKS = (1, 16, 64)
NUM_LOOKUPS = 1_000
EPOCH = Epoch(1)


class Fleet:
    """An index filled up to `num_blocks`, and what it takes to go on."""

    def __init__(self, *, num_workers: int, num_blocks: int) -> None:
        self.random = random.Random(num_workers)
        self.workers = [WorkerId(f"worker-{n}") for n in range(num_workers)]
        self.sequences = dict.fromkeys(self.workers, 0)
        self.num_chains = 0
        self.num_pairs = 0
        self.longest_s = 0.0
        before = resident_bytes()
        self.index = PrefixIndex(max_blocks=MAX_BLOCKS)
        for worker in self.workers:
            self.index.follow_worker(worker, EPOCH, is_prefix_closed=True)
            self.index.load_snapshot(worker, EPOCH, sequence=0, packed=b"")
        while len(self.index) < num_blocks - CHAIN_BLOCKS:
            self._add_chain(self.num_chains)
        self.resident_bytes = resident_bytes() - before

    def add_deep_chains(self) -> None:
        for number in range(FIRST_DEEP, FIRST_DEEP + NUM_DEEP):
            packed = chain(number)
            depths = self.random.sample(range(1, CHAIN_BLOCKS), DEEP_WORKERS - 1)
            holders = self.random.sample(self.workers, DEEP_WORKERS)
            for worker, depth in zip(holders, (CHAIN_BLOCKS, *depths), strict=True):
                self._store(worker, packed[: depth * HASH_BYTES])

    def apply(self, worker: WorkerId, kind: ChangeKind, packed: bytes) -> None:
        self.sequences[worker] += 1
        begun = time.thread_time()
        self.index.apply_event(
            worker,
            EPOCH,
            sequence=self.sequences[worker],
            kind=kind,
            packed=packed,
            now=0.0,
        )
        self.longest_s = max(self.longest_s, time.thread_time() - begun)

    def _add_chain(self, number: int) -> None:
        packed = chain(number)[: num_stored(number) * HASH_BYTES]
        self.num_chains += 1
        holders = self.random.sample(self.workers, 4)
        for place, worker in enumerate(holders):
            depth = num_stored(number) if place == 0 else self.random.randrange(num_stored(number))
            self._store(worker, packed[: depth * HASH_BYTES])
        for worker in self.random.sample(self.workers, len(self.workers) // 4):
            self._store(worker, packed[: SHARED_BLOCKS * HASH_BYTES])

    def _store(self, worker: WorkerId, packed: bytes) -> None:
        self.num_pairs += len(packed) // HASH_BYTES
        for part in pieces(packed, num_blocks=64):
            self.apply(worker, "stored", part)


def chain(number: int) -> bytes:
    return np.random.default_rng(number).bytes(CHAIN_BLOCKS * HASH_BYTES)


def num_stored(number: int) -> int:
    """Of the chain of that number: all of every second one, a part of the others."""
    return CHAIN_BLOCKS if number % 2 else PART_BLOCKS


def pieces(packed: bytes, *, num_blocks: int) -> Iterator[bytes]:
    step = num_blocks * HASH_BYTES
    for start in range(0, len(packed), step):
        yield packed[start : start + step]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def lookups(fleet: Fleet, *, is_closed: bool) -> dict[str, object]:
    """Microseconds of `depths`, by how many blocks of the prompt somebody has; `deep`: as many as
    there are, of 64 workers."""
    for slot in range(2 * len(fleet.workers)):  # each took one when it came, one for its snapshot
        fleet.index.table.set_closed(slot, is_closed)
    kinds: dict[str, Callable[[], int]] = {
        "0": lambda: 1_000_000_000 + fleet.random.randrange(1_000_000),
        str(PART_BLOCKS): lambda: fleet.random.randrange(fleet.num_chains // 2) * 2,
        str(CHAIN_BLOCKS): lambda: fleet.random.randrange(fleet.num_chains // 2) * 2 + 1,
        "deep": lambda: FIRST_DEEP + fleet.random.randrange(NUM_DEEP),
    }
    results: dict[str, object] = {}
    for hits, draw in kinds.items():
        times_us = []
        for _ in range(NUM_LOOKUPS):
            for _ in range(5 if hits == "deep" else 0):
                fleet.index.depths(chain(fleet.random.randrange(fleet.num_chains)), now=0.0)
            packed = chain(draw())
            begun = time.perf_counter()
            depths = fleet.index.depths(packed, now=0.0)
            times_us.append((time.perf_counter() - begun) * 1e6)
            assert int(depths.max()) == (CHAIN_BLOCKS if hits == "deep" else int(hits))
        results[hits] = percentiles(times_us, digits=1)
    return results


def expected_us(fleet: Fleet) -> dict[str, object]:
    """With 1,000 prompts sent in the last two seconds, of ten beginnings of 1,000 blocks."""
    beginnings = [chain(2_000_000_000 + n)[: 1_000 * HASH_BYTES] for n in range(10)]
    note_us, find_us = [], []
    for n in range(1_000):
        packed = fleet.random.choice(beginnings) + chain(3_000_000_000 + n)[: 500 * HASH_BYTES]
        begun = time.perf_counter()
        fleet.index.depths(packed, now=0.0)
        found = time.perf_counter()
        fleet.index.expect_blocks(fleet.random.choice(fleet.workers), packed, now=0.0)
        note_us.append((time.perf_counter() - found) * 1e6)
        find_us.append((found - begun) * 1e6)
    fleet.index.depths(b"", now=1e9)
    return {
        "expect_blocks": percentiles(note_us, digits=1),
        "depths": percentiles(find_us[500:], digits=1),
    }


def draw_events(fleet: Fleet, *, num_blocks: int) -> list[BlockEvent]:
    """As of full caches: each that stores new blocks is followed by one that evicts old ones."""
    kept: list[tuple[WorkerId, bytes]] = []
    events = []
    for n in range(min(20_000, 1_000_000 // num_blocks)):
        if n % 2:
            worker, packed = kept.pop(fleet.random.randrange(len(kept)))
        else:
            worker, packed = (
                fleet.random.choice(fleet.workers),
                fleet.random.randbytes(num_blocks * HASH_BYTES),
            )
            kept.append((worker, packed))
        fleet.sequences[worker] += 1
        events.append(
            BlockEvent(
                worker=worker,
                epoch=EPOCH,
                sequence=fleet.sequences[worker],
                kind="evicted" if n % 2 else "stored",
                packed_hashes=packed,
            )
        )
    return events


async def snapshot_stop_ms(server: RedisServer) -> float:
    """Longest that the event loop stands still, CPU milliseconds, while a snapshot of 100,000
    blocks is read."""
    store = Store(server.address, deadline_s=30.0)
    packed = np.random.default_rng(8).bytes(100_000 * HASH_BYTES)
    worker = WorkerId("snapshot")
    await store.rewrite(unpack_hashes(packed), worker=worker, epoch=EPOCH, sequence=1, ttl_s=600.0)
    reading = asyncio.create_task(store.snapshot(worker, EPOCH), name="snapshot")
    longest_s, before = 0.0, time.thread_time()
    while not reading.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest_s, before = max(longest_s, now - before), now
    snapshot = reading.result()
    assert snapshot is not None and len(snapshot.packed_hashes) == len(packed)
    await store.close()
    return round(longest_s * 1e3, 2)


async def events_per_s(fleet: Fleet, server: RedisServer, *, num_blocks: int) -> float:
    """Blocks a CPU second: read from the stream, decoded and applied."""
    store = Store(server.address, deadline_s=30.0)
    events = draw_events(fleet, num_blocks=num_blocks)
    after = await store.last_event_id()
    with server.client() as redis, redis.pipeline() as pipe:
        for event in events:
            pipe.xadd(store.stream_key, {b"e": msgspec.msgpack.encode(event)})
        pipe.execute()
    begun, num_read = time.process_time(), 0
    while num_read < len(events):
        after, read = await store.read_events(after)
        for event in read:
            fleet.index.apply_event(
                event.worker,
                event.epoch,
                sequence=event.sequence,
                kind=event.kind,
                packed=event.packed_hashes,
                now=0.0,
            )
        num_read += len(read)
    taken_s = time.process_time() - begun
    assert fleet.index.state is IndexState.EXACT
    await store.close()
    return round(len(events) * num_blocks / taken_s)


def all_events_per_s(fleet: Fleet) -> dict[str, float]:
    with redis_server() as server:
        return {
            str(num_blocks): asyncio.run(events_per_s(fleet, server, num_blocks=num_blocks))
            for num_blocks in EVENT_BLOCKS
        }


def longest_stops_ms(fleet: Fleet) -> dict[str, float]:
    """CPU milliseconds at a stretch; `growth` is of any event of 64 blocks while it was filled."""
    index, worker = fleet.index, fleet.workers[0]
    stops = {"growth": fleet.longest_s}
    packed = np.random.default_rng(7).bytes(10_000 * HASH_BYTES)
    load = index.begin_snapshot(worker, EPOCH, sequence=10**9, packed=packed)
    assert load is not None
    stops["snapshot_slice"] = max(timed(load.store_slices()))
    begun = time.thread_time()
    load.finish()
    stops["snapshot_end"] = time.thread_time() - begun
    begun = time.thread_time()
    index.forget_worker(fleet.workers[1])
    stops["forget"] = time.thread_time() - begun
    slices = list(timed(swept(index)))
    stops["sweep_slice"], stops["sweep_in_all"] = max(slices), sum(slices)
    return {name: round(taken_s * 1e3, 3) for name, taken_s in stops.items()}


def swept(index: PrefixIndex) -> Iterator[None]:
    while index.is_dirty:
        index.sweep_some()
        yield


def timed(steps: Iterator[None]) -> Iterator[float]:
    begun = time.thread_time()
    for _ in steps:
        ended = time.thread_time()
        yield ended - begun
        begun = time.thread_time()


def measure(*, num_workers: int, num_blocks: int) -> dict[str, object]:
    fleet = Fleet(num_workers=num_workers, num_blocks=num_blocks)
    table = fleet.index.table
    assert isinstance(table, CTable)
    content = {
        "blocks": len(fleet.index),
        "holders_a_block": round(fleet.num_pairs / len(fleet.index), 2),
        "sets": table.num_sets,
        "bytes_a_block": round(fleet.resident_bytes / len(fleet.index), 1),
    }
    fleet.add_deep_chains()
    return content | {
        "open_lookup_us_by_hits": lookups(fleet, is_closed=False),
        "lookup_us_by_hits": lookups(fleet, is_closed=True),
        "expected_us": expected_us(fleet),
        "blocks_a_cpu_s_by_blocks_an_event": all_events_per_s(fleet),
        "longest_stop_ms": longest_stops_ms(fleet),
    }


def hashing_us() -> dict[str, float | int]:
    """Of a prompt of 2,000 blocks of 16 tokens."""
    tokens = [n * 7919 % 32_000 for n in range(CHAIN_BLOCKS * 16)]
    times_us = []
    for _ in range(200):
        begun = time.perf_counter()
        packed_hashes(tokens, block_tokens=16, seed=chain_seed(compat="c"))
        times_us.append((time.perf_counter() - begun) * 1e6)
    return percentiles(times_us, digits=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, help="measure one fleet, here, and print it")
    parser.add_argument("--blocks", type=int, default=SIZES[0])
    asked = parser.parse_args()
    if asked.workers:
        print(json.dumps(measure(num_workers=asked.workers, num_blocks=asked.blocks)))
        return
    for num_workers in FLEETS:
        for num_blocks in SIZES:
            size = ["--workers", str(num_workers), "--blocks", str(num_blocks)]
            command = [sys.executable, "-m", "bench.prefix_index", *size]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            parser_of_redis = "hiredis" if find_spec("hiredis") else "python"
            conditions = {"workers": num_workers, "redis_parser": parser_of_redis}
            record("prefix_index", conditions=conditions, results=json.loads(done.stdout))
    record("prefix_index", conditions={"hashing": "2,000 blocks"}, results=hashing_us())
    with redis_server() as server:
        stop = {"longest_stop_ms": asyncio.run(snapshot_stop_ms(server))}
    record("prefix_index", conditions={"snapshot_of": 100_000}, results=stop)


if __name__ == "__main__":
    main()
