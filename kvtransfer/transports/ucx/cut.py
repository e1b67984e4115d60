"""How a chunk's ranges are cut into UCX messages: both ends cut alike, and say how.

Pure. The sink knows both pools' ranges, so it joins those that are neighbours in both; the source
checks what it is told against its own.
"""

# Shapes: R ranges of a chunk, M messages that carry them.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtransfer.plan import Int64s, Ranges
from protocol.errors import WireError


@dataclass(frozen=True, slots=True, eq=False)
class TaggedRanges:
    """Byte ranges of one pool, one message each."""

    number: int
    """Of the chunk on its stream; in every message's tag, with its place among them."""
    offsets_M: Int64s
    sizes_M: Int64s

    def emptied(self) -> "TaggedRanges":
        """The same messages without a byte: they complete what the peer awaits."""
        return TaggedRanges(self.number, self.offsets_M, np.zeros_like(self.sizes_M))


def joint_runs(source: Ranges, target: Ranges) -> Int64s:
    """[M] how many neighbouring ranges, adjacent in both pools, make one message."""
    sizes_R = target.sizes_R
    parts_R = np.ones(len(sizes_R), np.bool_)
    parts_R[1:] = False
    for offsets_R in (source.offsets_R, target.offsets_R):
        parts_R[1:] |= offsets_R[:-1] + sizes_R[:-1] != offsets_R[1:]
    firsts_M = np.flatnonzero(parts_R)
    return np.diff(firsts_M, append=len(sizes_R))


def cut_ranges(number: int, ranges: Ranges, runs_M: Int64s) -> TaggedRanges:
    """The messages that carry these ranges of one pool."""
    firsts_M = np.cumsum(runs_M) - runs_M
    sizes_M = np.add.reduceat(ranges.sizes_R, firsts_M)
    return TaggedRanges(number, ranges.offsets_R[firsts_M], sizes_M)


def runs_of(packed: bytes, ranges: Ranges) -> Int64s:
    """What a sink says of its messages. Raises WireError unless each is one run of our pool."""
    if len(packed) % 4:
        raise WireError(f"{len(packed)} bytes of runs")
    runs_M: Int64s = np.frombuffer(packed, "<u4").astype(np.int64)
    if not len(runs_M) or not runs_M.all() or int(runs_M.sum()) != len(ranges.sizes_R):
        raise WireError(f"{len(runs_M)} messages of a chunk of {len(ranges.sizes_R)} ranges")
    if not _adjacent(ranges, runs_M):
        raise WireError("a message would be of ranges that are not adjacent")
    return runs_M


def _adjacent(ranges: Ranges, runs_M: Int64s) -> bool:
    """Within each run every range begins where the one before it ends."""
    inner_R: NDArray[np.bool_] = np.ones(len(ranges.sizes_R), np.bool_)
    inner_R[np.cumsum(runs_M) - runs_M] = False
    ends_R = ranges.offsets_R[:-1] + ranges.sizes_R[:-1]
    return bool((ends_R == ranges.offsets_R[1:])[inner_R[1:]].all())
