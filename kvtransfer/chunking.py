"""Which pieces that are ready travel together.

A pure decision, called by a source whenever blocks were written: few large chunks, because each
costs a word, a turn and a notice on both sides, yet none so large that it holds up the others.
"""

# Shapes: P pieces in the order they are sent.

from dataclasses import dataclass

import numpy as np

from kvtransfer.plan import Int64s

LEAST_BYTES = 1 << 20
"""Published for EFA: 365 of 400 GB/s with 1 MiB blocks, 97 with 64 KiB ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of one chunk. Raises ValueError where they leave nothing between them."""

    most_bytes: int
    most_pieces: int
    least_bytes: int = LEAST_BYTES

    def __post_init__(self) -> None:
        if not 1 <= self.least_bytes <= self.most_bytes or self.most_pieces < 1:
            raise ValueError(f"{self}: must be 1 <= least <= most bytes, and a piece or more")


def cut(bytes_P: Int64s, bounds: Bounds, *, more: bool) -> list[range]:
    """The chunks to send now, as positions in `bytes_P`, one after another from 0.

    None has more than `most_pieces`, or more than `most_bytes` unless it is a single piece. One
    below `least_bytes` cannot be joined with a neighbour within these bounds. With `more` pieces
    to come a rest that is too small waits for them; without, the chunks are all of P. Pieces that
    need several chunks are shared out evenly, so that none trails.
    """
    ends_P = np.concatenate((np.zeros(1, np.int64), np.cumsum(bytes_P)))
    chunks: list[range] = []
    start = 0
    while start < len(bytes_P):
        chunks.append(range(start, _end(ends_P, start, bounds)))
        start = chunks[-1].stop
        while len(chunks) > 1 and _joinable(ends_P, chunks[-2], chunks[-1], bounds):
            chunks[-2:] = [range(chunks[-2].start, start)]
    if more and chunks and _bytes(ends_P, chunks[-1]) < bounds.least_bytes:
        chunks.pop()
    return chunks


def _end(ends_P: Int64s, start: int, bounds: Bounds) -> int:
    """Where the chunk from `start` ends when all that are left become about equal."""
    left = range(start, len(ends_P) - 1)
    left_bytes = _bytes(ends_P, left)
    num_chunks = max(-(-left_bytes // bounds.most_bytes), -(-len(left) // bounds.most_pieces))
    goal_bytes = max(-(-left_bytes // num_chunks), bounds.least_bytes)
    enough = int(np.searchsorted(ends_P, ends_P[start] + goal_bytes))
    fitting = int(np.searchsorted(ends_P, ends_P[start] + bounds.most_bytes, side="right")) - 1
    return max(start + 1, min(enough, fitting, start + bounds.most_pieces))


def _joinable(ends_P: Int64s, one: range, other: range, bounds: Bounds) -> bool:
    both = range(one.start, other.stop)
    small = min(_bytes(ends_P, one), _bytes(ends_P, other)) < bounds.least_bytes
    fits = _bytes(ends_P, both) <= bounds.most_bytes and len(both) <= bounds.most_pieces
    return small and fits


def _bytes(ends_P: Int64s, chunk: range) -> int:
    return int(ends_P[chunk.stop] - ends_P[chunk.start])
