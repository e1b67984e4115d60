"""MXFP4 weights, as GPT-OSS stores its experts (OCP Microscaling Formats v1.0).

Called by `engine.experts`. A block is 32 numbers of four bits (e2m1), two a byte, the low half
first; its scale is a power of two, stored as the exponent plus 127 (e8m0).
"""

# Shapes: N rows, B blocks of a row, K = 32 B numbers of a row.

import torch
from torch import Tensor

BLOCK = 32
_NOT_A_NUMBER = 255
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])


def dequantise(blocks: Tensor, scales_NB: Tensor) -> Tensor:
    """float32 [N, K] of uint8 `blocks` [N, B, 16] and `scales_NB`; exact, also in bfloat16.

    A scale of 255 is NaN, as the format says."""
    values = _VALUES.to(blocks.device)
    pairs = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), dim=-1)
    exponents_NB = scales_NB.to(torch.int32) - 127
    scaled = torch.ldexp(pairs.flatten(2), exponents_NB[..., None])
    scaled = scaled.masked_fill((scales_NB == _NOT_A_NUMBER)[..., None], torch.nan)
    return scaled.flatten(1)
