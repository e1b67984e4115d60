"""Takes tokens that are not allowed out of rows of logits, on any device.

The twin of `engine.sampling.triton_mask`, which does it on a GPU.
"""

# Shapes: R rows, A of them masked, V vocabulary, W words of 32 bits.

from typing import Protocol

import torch
from torch import Tensor


class TokenMasker(Protocol):
    def __call__(self, logits_RV: Tensor, rows_A: Tensor, words_AW: Tensor, /) -> None:
        """Writes -inf into row `rows_A[a]` (int64) of float32 logits where bit v % 32 of word
        v // 32 of `words_AW[a]` (int32) is 0, and where there is no such word. No row is named
        twice."""
        ...


def mask_tokens(logits_RV: Tensor, rows_A: Tensor, words_AW: Tensor, /) -> None:
    size = logits_RV.shape[1]
    bits_32 = torch.arange(32, dtype=torch.int32, device=words_AW.device)
    kept_AV = ((words_AW[:, :, None] >> bits_32) & 1).flatten(1)[:, :size]
    kept_AV = torch.nn.functional.pad(kept_AV, (0, size - kept_AV.shape[1]))
    logits_RV[rows_A] = logits_RV[rows_A].masked_fill(kept_AV == 0, -torch.inf)
