"""Takes tokens that are not allowed out of rows of logits. Twin: `engine.sampling.masks`.

Writes alone: a row's scores are not read.
"""

# Shapes: R rows, A of them masked, V vocabulary, W words of 32 bits.

import triton
import triton.language as tl
from torch import Tensor

from engine.ops.triton.launch import Launch, as_stride

LAUNCH = Launch(block_n=4_096, num_warps=4)


@triton.jit(do_not_specialize_on_alignment=["rows", "words"])  # type: ignore[untyped-decorator]
def mask_kernel(  # type: ignore[no-untyped-def]
    logits, rows, words, row_stride, words_stride, size, num_words,
    TILE: tl.constexpr,
):  # fmt: skip
    """Program (a, tile) writes one tile of row `rows[a]`."""
    a, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = logits + tl.load(rows + a) * row_stride
    places = tile * (TILE // 32) + tl.arange(0, TILE // 32)
    word = tl.load(words + a * words_stride + places, mask=places < num_words, other=0)
    bits = (word[:, None] >> tl.arange(0, 32)[None, :]) & 1
    ids = places[:, None] * 32 + tl.arange(0, 32)[None, :]
    nothing = tl.full((TILE // 32, 32), float("-inf"), tl.float32)
    tl.store(row + ids, nothing, mask=(bits == 0) & (ids < size))


def mask_tokens(logits_RV: Tensor, rows_A: Tensor, words_AW: Tensor, /) -> None:
    """As `engine.sampling.masks.TokenMasker`. Nothing waits for the device."""
    num_rows, num_words = words_AW.shape
    size = logits_RV.shape[1]
    mask_kernel[(num_rows, triton.cdiv(size, LAUNCH.block_n))](
        logits_RV, rows_A, words_AW, as_stride(logits_RV, 0), as_stride(words_AW, 0), size,
        num_words, TILE=LAUNCH.block_n, **LAUNCH.options,
    )  # fmt: skip
