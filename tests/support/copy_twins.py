"""The twins of `kvtransfer.kernels.copy` in numpy: the same copies and sums, in int64 words.

On the caller's core alone, a slab at a time: torch would share each step out among threads, which
wait for one another where others want the cores (5 s for 20 MB at a load of 19).
"""

# Shapes: W words of 8 bytes in R ranges of P pieces, of which S in a slab; the 5 rows of a table
# are those of `kvtransfer.device.table`.

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from kvtransfer.kernels.copy import FIRST, GAMMA, SECOND

_SLAB_WORDS = 1 << 15
"""What fits a core's own cache with the words made of it."""
Words = NDArray[Any]


def copy_twin(target_W: Tensor, source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """`copy` over the whole spans as int64 words."""
    goal_W, origin_W = target_W.numpy(), source_W.numpy()
    for from_R, to_R, sizes_R, _, _ in _slabs(table_5R):
        row_S, within_S = _spread(sizes_R)
        goal_W[to_R[row_S] + within_S] = origin_W[from_R[row_S] + within_S]
    sums_twin(source_W, table_5R, sums_P)


def sums_twin(source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """`copy` without a target, over the whole span as int64 words."""
    origin_W, totals_P = source_W.numpy(), sums_P.numpy()
    for from_R, _, sizes_R, first_R, piece_R in _slabs(table_5R):
        row_S, within_S = _spread(sizes_R)
        mixed_S = _mixed(origin_W[from_R[row_S] + within_S], first_R[row_S] + within_S)
        begins_R = np.cumsum(sizes_R) - sizes_R
        np.add.at(totals_P, piece_R, np.add.reduceat(mixed_S, begins_R).view(np.int64))


def mix_twin(words_W: Tensor, numbers_W: Tensor) -> Tensor:
    """`mix`, `[word]` int64."""
    return from_numpy(_mixed(words_W.numpy(), numbers_W.numpy()).view(np.int64))


def _mixed(words_W: Words, numbers_W: Words) -> Words:
    """uint64, which wraps around."""
    z_W = words_W.view(np.uint64) + (numbers_W.astype(np.uint64) + np.uint64(1)) * _word(GAMMA)
    z_W = (z_W ^ (z_W >> np.uint64(30))) * _word(FIRST)
    z_W = (z_W ^ (z_W >> np.uint64(27))) * _word(SECOND)
    mixed_W: Words = z_W ^ (z_W >> np.uint64(31))
    return mixed_W


def _slabs(table_5R: Tensor) -> Iterator[Words]:
    """The rows of the table that are not empty, some at a time: a slab, or one larger range."""
    rows_5R = table_5R.numpy()
    rows_5R = rows_5R[:, rows_5R[2] > 0]
    slab_R = np.cumsum(rows_5R[2]) // _SLAB_WORDS
    firsts = np.flatnonzero(np.diff(slab_R)) + 1
    return iter(np.split(rows_5R, firsts, axis=1) if rows_5R.size else [])


def _spread(sizes_R: Words) -> tuple[Words, Words]:
    """Of every word of all ranges, its range and its place within, `[word]` each."""
    row_S = np.repeat(np.arange(len(sizes_R)), sizes_R)
    begins_R = np.cumsum(sizes_R) - sizes_R
    return row_S, np.arange(len(row_S)) - begins_R[row_S]


def _word(constant: Any) -> np.uint64:
    return np.uint64(constant.value)
