"""Joins what the splits of attention left, many of a row at a time.

The second half of Flash-Decoding (Dao et al. 2023). The sinks come in here, once a row. A row's
bits depend on its own splits alone. Its twin is attention without splits.
"""

# Shapes: T tokens, S sequences, G KV groups, H query heads, D head dim, P splits at a time.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.bound import Bound, begin_early, dependent
from engine.ops.triton.launch import FUSED, power_of_two
from engine.ops.triton.online_softmax import answer, before_keys, joined, last_not_above
from engine.ops.work import SPLIT_ROWS, Pass

PARTS = 16
"""Splits of a row that are joined at once: 8,192 tokens of a decode's context."""


@triton.jit
def summed(peaks, masses, parts):  # type: ignore[no-untyped-def]
    """(Largest score, sum, values [1, D]) of P parts of one row, [P], [P] and [P, D]."""
    peak = tl.max(peaks, axis=0)
    grow = tl.exp2(peaks - tl.where(peak == float("-inf"), 0.0, peak))
    return peak, tl.sum(masses * grow, axis=0), tl.sum(parts * grow[:, None], axis=0)[None, :]


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["first", "last", "first_slot", "num_slots"],
    do_not_specialize_on_alignment=["starts", "ends", "slots"],
)
def reduce_splits_kernel(  # type: ignore[no-untyped-def]
    scratch, out, starts, ends, slots, sinks, first, last, first_slot, num_slots,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr,
    SPLIT_ROWS: tl.constexpr, HAS_SINKS: tl.constexpr, UNIFORM: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_D: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (t, h): a row in several splits; UNIFORM: in order, as a chunk joins its own."""
    begin_early(DEPENDENT)
    head, token = tl.program_id(0), tl.program_id(1)
    sequence = last_not_above(starts, first, last, token)
    start, stop = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    begin = tl.load(slots + sequence)
    num_tokens = stop - start
    count = (tl.load(slots + sequence + 1) - begin) // tl.maximum(num_tokens, 1)
    if (token < start) | (token >= stop) | (count < 2) | (UNIFORM and num_tokens > 1):
        return
    end = tl.load(ends + sequence)
    position = end - stop + token
    size = SPLIT * tl.cdiv(num_tokens, SPLIT_ROWS)
    lead = 0  # splits that the sequence's first token sees and this one does not
    reached = position // size
    if WINDOW > 0:
        before = tl.maximum(end - num_tokens - WINDOW + 1, 0) // size
        lead = tl.maximum(position - WINDOW + 1, 0) // size - before
        reached -= before
    at = (begin - first_slot + token - start).to(tl.int64) * NUM_HEADS + head
    stride = num_tokens.to(tl.int64) * NUM_HEADS
    limits = scratch + num_slots.to(tl.int64) * NUM_HEADS * HEAD_DIM
    dims = tl.arange(0, BLOCK_D)
    inside = dims < HEAD_DIM
    row = tl.arange(0, 1)
    best, total = before_keys(sinks, head + row, row == 0, HAS_SINKS, 1)
    values = tl.zeros((1, BLOCK_D), tl.float32)
    if UNIFORM:
        for split in range(lead, reached + 1):
            one = at + split * stride + row
            part = tl.load(
                scratch + one[:, None] * HEAD_DIM + dims, mask=inside[None, :], other=0.0
            )
            best, total, values = joined(
                best, total, values, tl.load(limits + 2 * one), tl.load(limits + 2 * one + 1), part
            )
    else:
        for split in range(lead, reached + 1, PARTS):
            parts = split + tl.arange(0, PARTS)
            there = parts <= reached
            ones = at + parts * stride
            peaks = tl.load(limits + 2 * ones, mask=there, other=float("-inf"))
            masses = tl.load(limits + 2 * ones + 1, mask=there, other=0.0)
            part = tl.load(
                scratch + ones[:, None] * HEAD_DIM + dims,
                mask=there[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            peak, mass, part = summed(peaks, masses, part)
            best, total, values = joined(best, total, values, peak, mass, part)
    got = answer(total, values).to(out.dtype.element_ty)
    to = (token.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + dims
    tl.store(out + to[None, :], got, mask=inside[None, :])


def reduce_splits(
    scratch: Tensor, out: Tensor, inputs: ForwardInputs, heads: HeadShape, part: Pass, *,
    uniform: bool, early: bool = False,
) -> None:  # fmt: skip
    """Writes the rows of `out` [T, H D] whose sequences are in the pass and in several splits.
    `scratch` is float32: weighted values [slots, H, D], then [slots, H, 2] the largest score, in
    powers of two, and the sum of the weights. `early` as `engine.ops.triton.bound.dependent`."""
    assert inputs.work is not None and inputs.slots_GS1 is not None
    bound = bound_reduction(
        out.device, out.dtype, heads.num_heads, heads.head_dim, heads.window,
        heads.sinks_H is not None, inputs.work.split_tokens, uniform, early,
    )  # fmt: skip
    bound.launch(
        reduce_splits_kernel, (heads.num_heads, out.shape[0], 1), scratch, out, inputs.starts_S1,
        inputs.ends_S, inputs.slots_GS1[heads.group], heads.sinks_H,
        part.first, part.last, part.first_slot, part.num_slots,
    )  # fmt: skip


@cache
def bound_reduction(
    device: torch.device, dtype: torch.dtype, num_heads: int, dim: int, window: int | None,
    has_sinks: bool, split_tokens: int, uniform: bool, early: bool,
) -> Bound:  # fmt: skip
    constants = {
        "NUM_HEADS": num_heads, "HEAD_DIM": dim, "WINDOW": window or 0, "SPLIT": split_tokens,
        "SPLIT_ROWS": SPLIT_ROWS, "HAS_SINKS": has_sinks, "UNIFORM": uniform, "PARTS": PARTS,
        "BLOCK_D": power_of_two(dim), "DEPENDENT": early,
    }  # fmt: skip
    num_warps = max(1, power_of_two(dim) // 32)
    return Bound(constants, {"num_warps": num_warps, **FUSED, **dependent(early)})
