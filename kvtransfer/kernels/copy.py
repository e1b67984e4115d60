"""Copies ranges of one device span over ranges of another and sums each piece, or sums alone.

One pass: a word is loaded once, stored once and mixed in registers. The same kernel copies between
peer-mapped pools, gathers scattered ranges into contiguous staging and scatters them out of it;
only the table differs.

A piece of words w_0, w_1, ... (8 bytes, little endian, in the order of its slot) sums to

    sum over i of mix(w_i + (i + 1) * GAMMA)  mod 2**64,

where mix is the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, OOPSLA 2014). Addition makes the order of threads irrelevant, GAMMA makes the order of
words count, and mix keeps two wrong bits from cancelling. Guards against faults, not forgers.
"""

# Shapes: W words of 8 bytes in R ranges of P pieces; the 5 rows of a table are those of
# `kvtransfer.device.table`.

import triton
import triton.language as tl
from torch import Tensor

TILE_WORDS = 2_048
"""16 KiB a program: 8 words for each of its 256 threads, loaded 16 bytes at a time."""
NUM_WARPS = 8
GAMMA = tl.constexpr(0x9E37_79B9_7F4A_7C15)
FIRST = tl.constexpr(0xBF58_476D_1CE4_E5B9)
SECOND = tl.constexpr(0x94D0_49BB_1331_11EB)


@triton.jit
def mix(word, number):  # type: ignore[no-untyped-def]
    """What one word at position `number` of its piece adds to the sum."""
    z = word.to(tl.uint64, bitcast=True) + (number + 1).to(tl.uint64) * GAMMA
    z = (z ^ (z >> 30)) * FIRST
    z = (z ^ (z >> 27)) * SECOND
    return z ^ (z >> 31)


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


def copy(
    target: int | None, source: int, table_5R: Tensor, sums_P: Tensor, *, longest_words: int
) -> None:
    """Launch the copy on the current stream, without `target` the sums alone; adds each piece's sum
    to `sums_P` (int64, zeros).

    `table_5R`: int64 on the device, as `kvtransfer.device.table` makes it.
    """
    num_ranges = table_5R.shape[1]
    grid = (num_ranges, triton.cdiv(longest_words, TILE_WORDS))
    copy_kernel[grid](
        source if target is None else target, source, table_5R, sums_P, num_ranges,
        COPIES=target is not None, TILE=TILE_WORDS, num_warps=NUM_WARPS,
    )  # fmt: skip
