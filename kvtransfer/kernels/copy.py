"""Copies ranges of one device span over ranges of another and sums each piece, or sums alone.

One pass: a word is loaded once, stored once and mixed in registers. The same kernel copies between
peer-mapped pools, gathers scattered ranges into contiguous staging and scatters them out of it;
only the table differs.
"""

# Shapes: R ranges, P pieces, W words of 8 bytes.

import triton
import triton.language as tl
from torch import Tensor

from kvtransfer.kernels.mix import mix, mix_twin, spread

TILE_WORDS = 2_048
"""16 KiB a program: 8 words for each of its 256 threads, loaded 16 bytes at a time."""
NUM_WARPS = 8


@triton.jit(do_not_specialize=["num_ranges"])  # type: ignore[untyped-decorator]
def copy_kernel(target, source, table, sums, num_ranges, COPIES: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (r, t) does tile t of range r; addresses come as integers, of any peer's memory.
    Without `COPIES` it sums what it loads and stores nothing: `target` is not looked at."""
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
        if COPIES:
            to_word = tl.multiple_of(tl.load(table + num_ranges + row), 2)
            goal = tl.multiple_of(target.to(tl.pointer_type(tl.int64)), 16)
            tl.store(goal + to_word + at, words, mask=inside)
        mixed = tl.where(inside, mix(words, first + at), 0)
        tl.atomic_add(sums + piece, tl.sum(mixed, axis=0).to(tl.int64, bitcast=True), sem="relaxed")


def copy(target: int, source: int, table_5R: Tensor, sums_P: Tensor, *, longest_words: int) -> None:
    """Launch the copy on the current stream; adds each piece's sum to `sums_P` (int64, zeros).

    `table_5R`: int64 on the device, as `kvtransfer.device.table` makes it.
    """
    _launch(target, source, table_5R, sums_P, longest_words, copies=True)


def sums(source: int, table_5R: Tensor, sums_P: Tensor, *, longest_words: int) -> None:
    """Launch the sums alone, as of `copy`: once for each block that a source lends."""
    _launch(source, source, table_5R, sums_P, longest_words, copies=False)


def _launch(
    target: int, source: int, table_5R: Tensor, sums_P: Tensor, longest_words: int, *, copies: bool
) -> None:
    num_ranges = table_5R.shape[1]
    grid = (num_ranges, triton.cdiv(longest_words, TILE_WORDS))
    copy_kernel[grid](
        target, source, table_5R, sums_P, num_ranges, COPIES=copies, TILE=TILE_WORDS,
        num_warps=NUM_WARPS,
    )  # fmt: skip


def copy_twin(target_W: Tensor, source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """The same in torch, over the whole spans as int64 words."""
    from_R, to_R, _, _, _ = table_5R
    row_W, within_W = spread(table_5R)
    target_W[to_R[row_W] + within_W] = source_W[from_R[row_W] + within_W]
    sums_twin(source_W, table_5R, sums_P)


def sums_twin(source_W: Tensor, table_5R: Tensor, sums_P: Tensor) -> None:
    """The same in torch, over the whole span as int64 words."""
    from_R, _, _, first_R, piece_R = table_5R
    row_W, within_W = spread(table_5R)
    words_W = source_W[from_R[row_W] + within_W]
    sums_P.index_add_(0, piece_R[row_W], mix_twin(words_W, first_R[row_W] + within_W))
