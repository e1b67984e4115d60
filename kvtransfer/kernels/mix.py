"""The checksum of a piece on a device: a sum that thousands of threads can take in any order.

A piece of words w_0, w_1, ... (8 bytes, little endian, in the order of its slot) sums to

    sum over i of mix(w_i + (i + 1) * GAMMA)  mod 2**64,

where mix is the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, OOPSLA 2014). Addition makes the order of threads irrelevant, GAMMA makes the order of
words count, and mix keeps two wrong bits from cancelling. Guards against faults, not forgers.
"""

# Shapes: W words in R ranges; the 5 rows of a table are those of `kvtransfer.device.table`.

import torch
import triton
import triton.language as tl
from torch import Tensor

GAMMA = tl.constexpr(0x9E37_79B9_7F4A_7C15)
_FIRST = tl.constexpr(0xBF58_476D_1CE4_E5B9)
_SECOND = tl.constexpr(0x94D0_49BB_1331_11EB)
_TOP = 1 << 63
_ALL = 1 << 64


@triton.jit
def mix(word, number):  # type: ignore[no-untyped-def]
    """What one word at position `number` of its piece adds to the sum."""
    z = word.to(tl.uint64, bitcast=True) + (number + 1).to(tl.uint64) * GAMMA
    z = (z ^ (z >> 30)) * _FIRST
    z = (z ^ (z >> 27)) * _SECOND
    return z ^ (z >> 31)


def mix_twin(words_W: Tensor, numbers_W: Tensor) -> Tensor:
    """The same in torch, where int64 wraps around: `[word]` int64."""
    z_W = words_W + (numbers_W + 1) * _signed(GAMMA.value)
    z_W = (z_W ^ _shifted(z_W, 30)) * _signed(_FIRST.value)
    z_W = (z_W ^ _shifted(z_W, 27)) * _signed(_SECOND.value)
    return z_W ^ _shifted(z_W, 31)


def spread(table_5R: Tensor) -> tuple[Tensor, Tensor]:
    """For twins: of every word of all ranges, its range and its place within, `[word]` each."""
    sizes_R = table_5R[2]
    row_W = torch.repeat_interleave(torch.arange(len(sizes_R)), sizes_R)
    begins_R = torch.cumsum(sizes_R, 0) - sizes_R
    return row_W, torch.arange(len(row_W)) - begins_R[row_W]


def _signed(value: int) -> int:
    return value - _ALL if value >= _TOP else value


def _shifted(x_W: Tensor, num_bits: int) -> Tensor:
    """A logical shift to the right; torch's drags the sign along."""
    return (x_W >> num_bits) & ((1 << (64 - num_bits)) - 1)
