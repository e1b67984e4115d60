"""MXFP4 weights, as GPT-OSS stores its experts (OCP Microscaling Formats v1.0).

A block is 32 numbers of four bits (e2m1), two a byte, the low half first; its scale is a power of
two, stored as the exponent plus 127 (e8m0).
"""

# Shapes: N rows, B blocks of a row, K = 32 B numbers of a row.

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
_NOT_A_NUMBER = 255
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
_PAIRS = torch.tensor([[_VALUES[byte & 15], _VALUES[byte >> 4]] for byte in range(256)])


def tensors(num_rows: int, num_columns: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that hold [N, K] numbers, by the ends of their names."""
    num_blocks = num_columns // BLOCK
    return {"_blocks": (num_rows, num_blocks, BLOCK // 2), "_scales": (num_rows, num_blocks)}


def dequantise(blocks: Tensor, scales_NB: Tensor) -> Tensor:
    """float32 [N, K] of uint8 `blocks` [N, B, 16] and `scales_NB`; exact, also in bfloat16.

    A scale of 255 is NaN, as the format says."""
    numbers = F.embedding(blocks.int(), _PAIRS.to(blocks.device)).flatten(2)
    scaled = torch.ldexp(numbers, scales_NB.int()[..., None] - 127)
    not_numbers_NB = scales_NB == _NOT_A_NUMBER
    return scaled.masked_fill(not_numbers_NB[..., None], torch.nan).flatten(1)
