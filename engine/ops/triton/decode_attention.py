"""Attention of sequences with one token in the step, a split of a context at a time.

Programs take items, of which there may be more or fewer than programs: a captured step launches as
many whatever its contexts are. How many there are changes no result.
"""

# Shapes: S sequences, G KV heads, H query heads, D head dim, M rows (heads of a KV head) and N keys
# of a tile.

import triton
import triton.language as tl

from engine.ops.triton.bound import begin_early
from engine.ops.triton.online_softmax import (
    answer,
    last_not_above,
    leave_part,
    over_keys,
    with_sinks,
)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "num_sequences", "first", "last", "first_slot", "num_slots", "table_stride",
    ],
    do_not_specialize_on_alignment=["starts", "ends", "slots", "tables"],
)  # fmt: skip
def decode_kernel(  # type: ignore[no-untyped-def]
    q, pool, out, scratch, starts, ends, slots, tables, sinks,
    q_stride, out_stride, block_stride, kv_stride, head_stride, scale, softcap,
    table_stride, num_sequences, first, last, first_slot, num_slots,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (g, p): every so many-th split of the pass's sequences of one token, from the p-th
    on, over KV head g. WINDOW 0: none."""
    begin_early(DEPENDENT)
    kv_head = tl.program_id(0)
    base = pool + kv_head.to(tl.int64) * head_stride
    rows, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    real, head = rows < GROUP, kv_head * GROUP + rows
    inside = real[:, None] & (dims < HEAD_DIM)[None, :]
    at = head[:, None] * HEAD_DIM + dims[None, :]
    num_items = tl.load(slots + last) - first_slot
    for item in range(tl.program_id(1), num_items, tl.num_programs(1)):
        slot = first_slot + item
        sequence = last_not_above(slots, first, last, slot)
        token, end = tl.load(starts + sequence), tl.load(ends + sequence)
        begin = tl.load(slots + sequence)
        if tl.load(starts + sequence + 1) == token + 1:
            low = 0
            if WINDOW > 0:
                low = tl.maximum(end - WINDOW, 0)
            split = low // SPLIT + slot - begin
            query = tl.load(q + token.to(tl.int64) * q_stride + at, mask=inside, other=0.0)
            best, total, values = over_keys(
                query, end, base, tables + sequence.to(tl.int64) * table_stride,
                tl.maximum(low, split * SPLIT), tl.minimum(end, (split + 1) * SPLIT),
                block_stride, kv_stride, scale, softcap,
                HEAD_DIM, BLOCK_TOKENS, False, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            if tl.load(slots + sequence + 1) == begin + 1:
                best, total, values = with_sinks(
                    sinks, head, real, best, total, values, HAS_SINKS, BLOCK_M, BLOCK_D
                )
                got = answer(total, values).to(out.dtype.element_ty)
                tl.store(out + token.to(tl.int64) * out_stride + at, got, mask=inside)
            else:
                leave_part(
                    scratch, num_slots, first_slot, slot, head, dims, best, total, values, real,
                    inside, NUM_HEADS, HEAD_DIM,
                )  # fmt: skip
