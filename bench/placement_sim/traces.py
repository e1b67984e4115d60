"""Workloads from recorded traces: arrivals spread, copies laid over each other, time compressed."""

import gzip
import json
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.placement_sim.hardware import Hardware
from bench.placement_sim.request import Request

BUCKET_S = 3.0
"""The conversation trace's times are so coarse."""


def read_trace(path: Path, *, block_tokens: int, seed: int = 0) -> list[Request]:
    """A Mooncake trace; requests of one recorded instant are spread over the 3 s that it stands
    for. Numbers of partial blocks are left out: nobody caches those."""
    chance = random.Random(seed)
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    rows = [json.loads(line) for line in text.splitlines()]
    stamps = [row["timestamp"] for row in rows]
    spread_s = BUCKET_S if len(set(stamps)) < len(stamps) / 2 else 0.0
    requests = [
        Request(
            number=0,
            arrives_at=row["timestamp"] / 1000 + chance.random() * spread_s,
            num_tokens=row["input_length"],
            num_output=max(1, row["output_length"]),
            blocks=tuple(row["hash_ids"][: row["input_length"] // block_tokens]),
        )
        for row in rows
    ]
    return by_arrival(requests)


def by_arrival(requests: Iterable[Request]) -> list[Request]:
    """In order of arrival, and numbered so."""
    ordered = sorted(requests, key=lambda request: request.arrives_at)
    return [replace(request, number=number) for number, request in enumerate(ordered)]


def lay_over(requests: Sequence[Request], *, num_copies: int, num_requests: int) -> list[Request]:
    """About the first `num_requests` of so many copies with blocks of their own, each begun a part
    of the span later and wrapped round at its end, so that the load stays as even as it was."""
    span_s = requests[-1].arrives_at
    until_s = span_s * num_requests / (num_copies * len(requests))
    num_blocks = 1 + max(block for request in requests for block in (*request.blocks, 0))
    copies = []
    for copy in range(num_copies):
        shift, late_s = copy * num_blocks, span_s * copy / num_copies
        for request in requests:
            arrives_at = (request.arrives_at + late_s) % span_s if copy else request.arrives_at
            if arrives_at <= until_s:
                blocks = tuple(block + shift for block in request.blocks)
                copies.append(replace(request, arrives_at=arrives_at, blocks=blocks))
    return by_arrival(copies)


def compress(
    requests: Sequence[Request], *, load: float, num_prefill: int, hardware: Hardware
) -> float:
    """What to multiply times with so that prefill workers which hit whatever was ever computed
    would be busy `load` of the time."""
    busy_s = sum(
        hardware.prefill_s(num_tokens=request.num_tokens, num_cached=cached)
        for request, cached in zip(requests, ideal_cached(requests, hardware), strict=True)
    )
    return busy_s / (num_prefill * requests[-1].arrives_at) / load


def ideal_cached(
    requests: Sequence[Request], hardware: Hardware, *, num_blocks: int | None = None
) -> list[int]:
    """Tokens of each prompt that one cache shared by all workers would have: every block is in it
    as soon as its request arrives; the least recently used go first, leaves first, where it holds
    `num_blocks`. At least one token of each prompt is always computed."""
    kept: OrderedDict[int, None] = OrderedDict()
    cached = []
    for request in requests:
        depth = next(
            (i for i, block in enumerate(request.blocks) if block not in kept), len(request.blocks)
        )
        cached.append(min(depth * hardware.block_tokens, request.num_tokens - 1))
        for block in reversed(request.blocks):
            kept[block] = None
            kept.move_to_end(block)
        while num_blocks is not None and len(kept) > num_blocks:
            kept.popitem(last=False)
    return cached
