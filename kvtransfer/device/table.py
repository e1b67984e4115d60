"""Ranges as the device kernels read them: one row of words for each range, in one array.

The only place where byte ranges become words; refuses what is not whole.
"""

# Shapes: R ranges in P pieces; the 5 are source, target, size, number of the first word within
# its piece (all in words of 8 bytes), and piece.

import numpy as np
from numpy.typing import NDArray

from kvtransfer.plan import Ranges

GRAIN_BYTES = 16
"""Offsets and sizes of device ranges are multiples of it: one load of one thread."""
_WORD_BYTES = 8


def table(source: Ranges, target: Ranges | None = None) -> NDArray[np.int64]:
    """`[5, R]` for a copy, or for sums alone without `target`. Raises ValueError."""
    goal = source if target is None else target
    assert len(goal.offsets_R) == len(source.offsets_R)
    begins_R = np.cumsum(source.sizes_R) - source.sizes_R
    counts_P = np.diff(source.starts_P)
    first_R = np.repeat(source.starts_P[:-1], counts_P)
    piece_R = np.repeat(np.arange(len(counts_P)), counts_P)
    bytes_4R = np.stack(
        [source.offsets_R, goal.offsets_R, source.sizes_R, begins_R - begins_R[first_R]]
    )
    if (bytes_4R % GRAIN_BYTES).any():
        raise ValueError(f"ranges: not all are multiples of {GRAIN_BYTES} bytes")
    return np.ascontiguousarray(np.vstack([bytes_4R // _WORD_BYTES, piece_R]), dtype=np.int64)


def packed(ranges: Ranges) -> Ranges:
    """The same pieces one after another, as they lie in staging."""
    begins_R = np.cumsum(ranges.sizes_R) - ranges.sizes_R
    return Ranges(offsets_R=begins_R, sizes_R=ranges.sizes_R, starts_P=ranges.starts_P)
