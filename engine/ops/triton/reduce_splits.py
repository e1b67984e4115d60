"""Joins what the splits of attention left, in the order of the context.

The second half of Flash-Decoding (Dao et al. 2023). The sinks come in here, once a row. Its twin
is attention without splits.
"""

# Shapes: T tokens, S sequences, H query heads, D head dim, P splits.

import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.launch import FUSED, power_of_two

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def owner_of(starts, num_sequences, token):  # type: ignore[no-untyped-def]
    """The last sequence that starts at or before the token."""
    low, high = 0, num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) <= token:
            low = middle
        else:
            high = middle
    return low


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_sequences", "num_splits"],
    do_not_specialize_on_alignment=["starts", "ends"],
)
def reduce_splits_kernel(  # type: ignore[no-untyped-def]
    partial, limits, out, starts, ends, sinks, num_sequences, num_splits,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr,
    HAS_SINKS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (t, h) does one row; splits that its context does not reach were never written."""
    token, head = tl.program_id(0), tl.program_id(1)
    sequence = owner_of(starts, num_sequences, token)
    stop = tl.load(starts + sequence + 1)
    if token >= stop:
        return
    position = tl.load(ends + sequence) - stop + token
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // SPLIT
    best, total = float("-inf"), 0.0
    if HAS_SINKS:
        best = tl.load(sinks + head) * _LOG2_E
        total = 1.0
    dims = tl.arange(0, BLOCK_D)
    inside = dims < HEAD_DIM
    values = tl.zeros((BLOCK_D,), tl.float32)
    row = token.to(tl.int64) * NUM_HEADS + head
    reached = tl.where(position < 0, 0, position // SPLIT + 1)
    for split in range(first, reached):
        at = row * num_splits + split
        peak = tl.load(limits + 2 * at)
        higher = tl.maximum(best, peak)
        pivot = tl.where(higher == float("-inf"), 0.0, higher)
        shrink, grow = tl.exp2(best - pivot), tl.exp2(peak - pivot)
        total = total * shrink + tl.load(limits + 2 * at + 1) * grow
        part = tl.load(partial + at * HEAD_DIM + dims, mask=inside, other=0.0)
        values = values * shrink + part * grow
        best = higher
    values = values / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * HEAD_DIM + dims, values.to(out.dtype.element_ty), mask=inside)


def reduce_splits(
    partial_THPD: Tensor, limits_THP2: Tensor, out: Tensor, inputs: ForwardInputs,
    heads: HeadShape, *, split_tokens: int,
) -> None:  # fmt: skip
    """Writes `out` [T, H D]. `limits` holds each split's largest score, in powers of two, and the
    sum of its weights; `partial` its weighted values."""
    num_tokens, num_heads, splits, dim = partial_THPD.shape
    reduce_splits_kernel[(num_tokens, num_heads)](
        partial_THPD, limits_THP2, out, inputs.starts_S1, inputs.ends_S, heads.sinks_H,
        inputs.num_sequences, splits,
        NUM_HEADS=num_heads, HEAD_DIM=dim, WINDOW=heads.window or 0, SPLIT=split_tokens,
        HAS_SINKS=heads.sinks_H is not None, BLOCK_D=power_of_two(dim), num_warps=4, **FUSED,
    )  # fmt: skip
