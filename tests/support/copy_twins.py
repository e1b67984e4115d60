"""The torch twins of `kvtransfer.kernels.copy`: the same copies and sums, in int64 words."""

# Shapes: W words of 8 bytes in R ranges of P pieces; the 5 rows of a table are those of
# `kvtransfer.device.table`.

import numpy as np
import torch
from torch import Tensor

from kvtransfer.kernels.copy import FIRST, GAMMA, SECOND

_TOP = 1 << 63
_ALL = 1 << 64


def copy_twin(target_W: Tensor, source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """`copy` in torch, over the whole spans as int64 words."""
    from_R, to_R, _, _, _ = table_5R
    row_W, within_W = spread(table_5R)
    target_W[to_R[row_W] + within_W] = source_W[from_R[row_W] + within_W]
    sums_twin(source_W, table_5R, sums_P)


def sums_twin(source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """`copy` without a target in torch, over the whole span as int64 words."""
    from_R, _, _, first_R, piece_R = table_5R
    row_W, within_W = spread(table_5R)
    words_W = source_W[from_R[row_W] + within_W]
    sums_P.index_add_(0, piece_R[row_W], mix_twin(words_W, first_R[row_W] + within_W))


def mix_twin(words_W: Tensor, numbers_W: Tensor) -> Tensor:
    """`mix` in torch, where int64 wraps around: `[word]` int64."""
    z_W = words_W + (numbers_W + 1) * _signed(GAMMA.value)
    z_W = (z_W ^ _shifted(z_W, 30)) * _signed(FIRST.value)
    z_W = (z_W ^ _shifted(z_W, 27)) * _signed(SECOND.value)
    return z_W ^ _shifted(z_W, 31)


def spread(table_5R: Tensor) -> tuple[Tensor, Tensor]:
    """For twins: of every word of all ranges, its range and its place within, `[word]` each."""
    sizes_R = table_5R[2]
    # numpy's: torch's takes all cores for it, 20 ms where others want them too
    row_W = torch.from_numpy(np.repeat(np.arange(len(sizes_R)), sizes_R.numpy()))
    begins_R = torch.cumsum(sizes_R, 0) - sizes_R
    return row_W, torch.arange(len(row_W)) - begins_R[row_W]


def _signed(value: int) -> int:
    return value - _ALL if value >= _TOP else value


def _shifted(x_W: Tensor, num_bits: int) -> Tensor:
    """A logical shift to the right; torch's drags the sign along."""
    return (x_W >> num_bits) & ((1 << (64 - num_bits)) - 1)
