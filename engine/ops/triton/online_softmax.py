"""The online softmax of attention over paged keys, and how two parts of it become one.

FlashAttention-2 (Dao 2023) over block tables (PagedAttention, Kwon et al. 2023). Block ids of the
next tile of keys are loaded while one is computed and carried in registers: Triton's pipeline
counts a load through a table it has just loaded as a stage of its own, and would otherwise wait for
every tile. A row's bits do not depend on the other rows of its tile, nor on tiles it does not see.
"""

# Shapes: M rows (tokens x heads of a KV head) and N keys of a tile, D head dim.

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def over_keys(  # type: ignore[no-untyped-def]
    query, position, base, table, low, high, block_stride, kv_stride, scale, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile's rows over keys low .. high: (largest score in powers of two, sum, values). Without
    CAUSAL every row sees all of them."""
    dims = tl.arange(0, BLOCK_D)
    in_dims = dims < HEAD_DIM
    places = tl.arange(0, BLOCK_N)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    start = low // BLOCK_N * BLOCK_N
    within = (start + places >= low) & (start + places < high)
    block = tl.load(table + (start + places) // BLOCK_TOKENS, mask=within, other=0)
    for first in range(start, high, BLOCK_N):
        keys = first + places
        within = (keys >= low) & (keys < high)  # beyond lies anything, NaN included
        where = base + block.to(tl.int64) * block_stride + keys % BLOCK_TOKENS * HEAD_DIM
        coming = keys + BLOCK_N
        block = tl.load(table + coming // BLOCK_TOKENS, mask=coming < high, other=0)
        mask = within[:, None] & in_dims[None, :]
        key = tl.load(where[:, None] + dims[None, :], mask=mask, other=0.0)
        score = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee") * scale
        if HAS_CAP:  # tanh by exp, which is 0 or infinite where tanh is -1 or 1
            grown = tl.exp2(score * (2 * LOG2_E / softcap))
            score = softcap * (1 - 2 / (grown + 1))
        seen = within[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= position[:, None])
            if WINDOW > 0:
                seen = seen & (keys[None, :] > position[:, None] - WINDOW)
        score = tl.where(seen, score * LOG2_E, float("-inf"))
        higher = tl.maximum(best, tl.max(score, axis=1))
        pivot = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
        weight = tl.exp2(score - pivot[:, None])
        shrink = tl.exp2(best - pivot)
        total = total * shrink + tl.sum(weight, axis=1)
        value = tl.load(where[:, None] + kv_stride + dims[None, :], mask=mask, other=0.0)
        values = values * shrink[:, None]
        values = tl.dot(
            weight.to(query.dtype), value.to(query.dtype), values, input_precision="ieee"
        )
        best = higher
    return best, total, values


@triton.jit  # type: ignore[untyped-decorator]
def before_keys(sinks, head, real, HAS_SINKS: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """(Largest score, sum) of rows that have seen no key: those of their sinks."""
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if HAS_SINKS:
        best = tl.load(sinks + head, mask=real, other=0.0) * LOG2_E
        total = tl.full((BLOCK_M,), 1.0, tl.float32)
    return best, total


@triton.jit  # type: ignore[untyped-decorator]
def joined(best, total, values, peak, mass, part):  # type: ignore[no-untyped-def]
    """(Largest score, sum, values) of two parts of the same rows. Joined with nothing (-inf, 0, 0),
    a part stays the same bits; the roundings are spelt out, so that every kernel has the same."""
    higher = tl.maximum(best, peak)
    pivot = tl.where(higher == float("-inf"), 0.0, higher)
    shrink, grow = tl.exp2(best - pivot), tl.exp2(peak - pivot)
    total = tl.fma(mass + tl.zeros_like(total), grow, total * shrink)
    grow = tl.broadcast_to(grow[:, None], part.shape)
    values = tl.fma(part, grow, values * shrink[:, None])
    return higher, total, values


@triton.jit  # type: ignore[untyped-decorator]
def with_sinks(  # type: ignore[no-untyped-def]
    sinks, head, real, best, total, values, HAS_SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All that the rows see, the sinks first."""
    if HAS_SINKS:
        peak, mass = before_keys(sinks, head, real, HAS_SINKS, BLOCK_M)
        nothing = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        best, total, values = joined(peak, mass, nothing, best, total, values)
    return best, total, values


@triton.jit  # type: ignore[untyped-decorator]
def answer(total, values):  # type: ignore[no-untyped-def]
    """What attention answers; 0 where a row saw nothing."""
    return values / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def leave_part(  # type: ignore[no-untyped-def]
    scratch, num_slots, first_slot, slot, head, dims, best, total, values, real, inside,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """What rows have of one split, to its place in the scratch (`reduce_splits`)."""
    to = (slot - first_slot).to(tl.int64) * NUM_HEADS + head
    limits = scratch + num_slots.to(tl.int64) * NUM_HEADS * HEAD_DIM
    tl.store(scratch + to[:, None] * HEAD_DIM + dims[None, :], values, mask=inside)
    tl.store(limits + 2 * to, best, mask=real)
    tl.store(limits + 2 * to + 1, total, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def last_not_above(numbers, first, last, number):  # type: ignore[no-untyped-def]
    """The largest i in first .. last with numbers[i] <= number, of numbers that never fall and
    begin no higher; all are looked at at once."""
    found = first
    places = tl.arange(0, 256)
    for start in range(first + 1, last, 256):
        one = start + places
        below = tl.load(numbers + one, mask=one < last, other=2147483647) <= number
        found += tl.sum(below.to(tl.int32), axis=0)
    return found
