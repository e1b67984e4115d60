"""Attention of sequences with several tokens in the step, a tile of their rows at a time.

A short chunk over a long context is cut into splits as decodes are, but longer ones
(`engine.ops.work`). Sequences of one token are `decode_attention`'s.
"""

# Shapes: S sequences, G KV heads, H query heads, D head dim, M rows (tokens x heads of a KV head)
# and N keys of a tile.

import triton
import triton.language as tl

from engine.ops.triton.bound import begin_early
from engine.ops.triton.online_softmax import (
    answer,
    before_keys,
    joined,
    leave_part,
    over_keys,
    with_sinks,
)

MOST_CONTEXT = tl.constexpr(1 << 30)


@triton.jit  # type: ignore[untyped-decorator]
def sequence_of(starts, num_sequences, tile, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sequence that query tile `tile` belongs to, when sequence s has its first tile at
    starts[s] // TOKENS + s: room enough for all of its tokens, known without a sum."""
    low, high = 0, num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit  # type: ignore[untyped-decorator]
def in_order(  # type: ignore[no-untyped-def]
    query, position, base, table, low, high, sinks, head, real,
    block_stride, kv_stride, scale, softcap, HAS_SINKS: tl.constexpr, SPLIT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Keys low .. high split by split, joined as `reduce_splits` does: the same bits."""
    best, total = before_keys(sinks, head, real, HAS_SINKS, BLOCK_M)
    values = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for split in range(low // SPLIT, tl.cdiv(high, SPLIT)):
        peak, mass, part = over_keys(
            query, position, base, table,
            tl.maximum(low, split * SPLIT), tl.minimum(high, (split + 1) * SPLIT),
            block_stride, kv_stride, scale, softcap,
            HEAD_DIM, BLOCK_TOKENS, True, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        best, total, values = joined(best, total, values, peak, mass, part)
    return total, values


@triton.jit
def first_seen(position, WINDOW):  # type: ignore[no-untyped-def]
    """The first key that a row at `position` sees."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    return first


@triton.jit
def split_range(split, end, num_tokens, held, SPLIT, SPLIT_ROWS, WINDOW):  # type: ignore[no-untyped-def]
    """Where the chunk's split begins and ends; all of the context where nothing is held of it."""
    size = tl.where(held > 0, SPLIT * tl.cdiv(num_tokens, SPLIT_ROWS), MOST_CONTEXT)
    split += first_seen(end - num_tokens, WINDOW) // size
    return split * size, (split + 1) * size


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "num_sequences", "first", "last", "first_slot", "num_slots", "table_stride",
    ],
    do_not_specialize_on_alignment=["starts", "ends", "slots", "tables"],
)  # fmt: skip
def chunk_kernel(  # type: ignore[no-untyped-def]
    q, pool, out, scratch, starts, ends, slots, tables, sinks,
    q_stride, out_stride, block_stride, kv_stride, head_stride, scale, softcap,
    table_stride, num_sequences, first, last, first_slot, num_slots,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, SPLIT: tl.constexpr, SPLIT_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (tile, g, p): the rows of a query tile over the p-th split of what its chunk sees, or
    over all where that is one; the longest contexts first. UNIFORM: over all, split by split."""
    begin_early(DEPENDENT)
    tokens: tl.constexpr = BLOCK_M // GROUP
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    sequence = sequence_of(starts, num_sequences, tile, tokens)
    start, stop = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    begin = start + (tile - (start // tokens + sequence)) * tokens
    if (begin >= stop) | (stop - start == 1) | (sequence < first) | (sequence >= last):
        return
    end = tl.load(ends + sequence)
    before = end - stop  # position of a token less its place in the batch
    low, high = first_seen(before + begin, WINDOW), tl.minimum(before + begin + tokens, end)
    split, held = tl.program_id(2), tl.load(slots + sequence + 1) - tl.load(slots + sequence)
    if not UNIFORM:
        least, most = split_range(split, end, stop - start, held, SPLIT, SPLIT_ROWS, WINDOW)
        low, high = tl.maximum(low, least), tl.minimum(high, most)
        if (split > 0) & ((split * (stop - start) >= held) | (low >= high)):
            return
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    token = begin + rows // GROUP
    real = (rows < tokens * GROUP) & (token < stop)
    head = kv_head * GROUP + rows % GROUP
    inside = real[:, None] & (dims < HEAD_DIM)[None, :]
    at = token.to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + at, mask=inside, other=0.0)
    table = tables + sequence.to(tl.int64) * table_stride
    base = pool + kv_head.to(tl.int64) * head_stride
    if UNIFORM:
        total, values = in_order(
            query, before + token, base, table, low, high, sinks, head, real,
            block_stride, kv_stride, scale, softcap, HAS_SINKS, SPLIT,
            HEAD_DIM, BLOCK_TOKENS, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    else:
        best, total, values = over_keys(
            query, before + token, base, table, low, high, block_stride, kv_stride, scale, softcap,
            HEAD_DIM, BLOCK_TOKENS, True, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        if held > 0:
            slot = tl.load(slots + sequence) + split * (stop - start) + token - start
            leave_part(
                scratch, num_slots, first_slot, slot, head, dims, best, total, values, real, inside,
                NUM_HEADS, HEAD_DIM,
            )  # fmt: skip
            return
        best, total, values = with_sinks(
            sinks, head, real, best, total, values, HAS_SINKS, BLOCK_M, BLOCK_D
        )
    at = token.to(tl.int64)[:, None] * out_stride + head[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out + at, answer(total, values).to(out.dtype.element_ty), mask=inside)
