"""Sums each piece of scattered ranges of a device span; copies nothing.

What a source does once to each block it lends.
"""

# Shapes: R ranges, P pieces, W words of 8 bytes.

import triton
import triton.language as tl
from torch import Tensor

from kvtransfer.kernels.mix import mix, mix_twin, spread

TILE_WORDS = 2_048
NUM_WARPS = 8


@triton.jit(do_not_specialize=["num_ranges"])  # type: ignore[untyped-decorator]
def sums_kernel(source, table, sums, num_ranges, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (r, t) sums tile t of range r."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1).to(tl.int64) * TILE
    size = tl.multiple_of(tl.load(table + 2 * num_ranges + row), 2)
    if start < size:
        from_word = tl.multiple_of(tl.load(table + row), 2)
        first = tl.load(table + 3 * num_ranges + row)
        piece = tl.load(table + 4 * num_ranges + row)
        at = start + tl.arange(0, TILE)
        inside = at < size
        origin = tl.multiple_of(source.to(tl.pointer_type(tl.int64)), 16)
        words = tl.load(origin + from_word + at, mask=inside, other=0)
        mixed = tl.where(inside, mix(words, first + at), 0)
        tl.atomic_add(sums + piece, tl.sum(mixed, axis=0).to(tl.int64, bitcast=True), sem="relaxed")


def sums(source: int, table_5R: Tensor, sums_P: Tensor, *, longest_words: int) -> None:
    """Launch on the current stream; adds each piece's sum to `sums_P` (int64, zeros)."""
    num_ranges = table_5R.shape[1]
    grid = (num_ranges, triton.cdiv(longest_words, TILE_WORDS))
    sums_kernel[grid](source, table_5R, sums_P, num_ranges, TILE=TILE_WORDS, num_warps=NUM_WARPS)


def sums_twin(source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """The same in torch, over the whole span as int64 words."""
    from_R, _, _, first_R, piece_R = table_5R
    row_W, within_W = spread(table_5R)
    words_W = source_W[from_R[row_W] + within_W]
    sums_P.index_add_(0, piece_R[row_W], mix_twin(words_W, first_R[row_W] + within_W))
