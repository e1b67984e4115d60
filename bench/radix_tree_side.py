"""Dynamo's RadixTree with the content of `bench.prefix_index`, in an environment of its own:

    python -m venv .venv-dynamo && .venv-dynamo/bin/pip install ai-dynamo-runtime
    .venv-dynamo/bin/python bench/radix_tree_side.py 1000000

Prints one line of JSON. Its calls go to a thread of its own, so times of events are given by the
wall and by CPU time of the process, without the making of their JSON.
"""

import json
import random
import sys
import time
from pathlib import Path
from statistics import median

from dynamo.llm import RadixTree  # type: ignore[import-not-found]

NUM_WORKERS, CHAIN_BLOCKS, PART_BLOCKS, SHARED_BLOCKS, EVENT_BLOCKS = 64, 2_000, 1_200, 100, 64


class Side:
    def __init__(self, *, num_blocks: int) -> None:
        self.random = random.Random(NUM_WORKERS)
        self.tree = RadixTree()
        self.sequences = [0] * NUM_WORKERS
        self.num_chains = self.num_blocks = self.num_applied = 0
        self.wall_s = self.cpu_s = 0.0
        before = resident_bytes()
        while self.num_blocks < num_blocks - CHAIN_BLOCKS:
            self._add_chain()
        self.tree.find_matches([1])  # after all events
        self.resident_bytes = resident_bytes() - before

    def find_us(self, *, first: int) -> float:
        """Median of chains: from 0 on those stored in part, from 1 on whole ones, else new ones."""
        times_us = []
        for _ in range(300):
            number = first + 2 * self.random.randrange(self.num_chains // 2)
            hashes = chain(number)
            begun = time.perf_counter()
            self.tree.find_matches(hashes)
            times_us.append((time.perf_counter() - begun) * 1e6)
        return round(median(times_us), 1)

    def _add_chain(self) -> None:
        hashes = chain(self.num_chains)[: CHAIN_BLOCKS if self.num_chains % 2 else PART_BLOCKS]
        self.num_chains += 1
        self.num_blocks += len(hashes)
        for place, worker in enumerate(self.random.sample(range(NUM_WORKERS), 4)):
            depth = self.random.randrange(len(hashes)) if place else len(hashes)
            self._store(worker, hashes[:depth])
        for worker in self.random.sample(range(NUM_WORKERS), NUM_WORKERS // 4):
            self._store(worker, hashes[:SHARED_BLOCKS])

    def _store(self, worker: int, hashes: list[int]) -> None:
        parent = None
        for start in range(0, len(hashes), EVENT_BLOCKS):
            part = hashes[start : start + EVENT_BLOCKS]
            self.sequences[worker] += 1
            blocks = [{"block_hash": one, "tokens_hash": one} for one in part]
            stored = {"stored": {"parent_hash": parent, "blocks": blocks}}
            event = {"event_id": self.sequences[worker], "data": stored, "dp_rank": 0}
            packed = json.dumps(event).encode()
            wall, cpu = time.perf_counter(), time.process_time()
            self.tree.apply_event(worker, packed)
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += time.process_time() - cpu
            self.num_applied += len(part)
            parent = part[-1]


def chain(number: int) -> list[int]:
    given = random.Random(number)
    return [given.getrandbits(63) for _ in range(CHAIN_BLOCKS)]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    side = Side(num_blocks=int(sys.argv[1]))
    results = {
        "blocks": side.num_blocks,
        "bytes_a_block": round(side.resident_bytes / side.num_blocks, 1),
        "find_matches_us_by_hits": {
            "0": side.find_us(first=1_000_000_000),
            str(PART_BLOCKS): side.find_us(first=0),
            str(CHAIN_BLOCKS): side.find_us(first=1),
        },
        "blocks_a_s": round(side.num_applied / side.wall_s),
        "blocks_a_cpu_s": round(side.num_applied / side.cpu_s),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
