"""What is tried of attention: decode, in splits, and chunks."""

# Shapes: T tokens, S sequences, H query heads, D head dim.

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton import attention, launch
from engine.ops.triton.launch import Launch
from engine.ops.work import slots, work
from tools.tune import subject
from tools.tune.subject import Subject, noise

BLOCK_TOKENS = 16
CONTEXT = 4_096
WARPS = (1, 2, 4, 8)
STAGES = (2, 3, 4, 5)


def attention_subjects(num_heads: int, num_kv_heads: int, head_dim: int) -> Iterator[Subject]:
    heads = HeadShape(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        scale=head_dim**-0.5, layer=0,
    )  # fmt: skip
    group = num_heads // num_kv_heads
    rows = max(16, launch.power_of_two(group))
    for decode in (True, False):
        num_sequences, tokens_each = (32, 1) if decode else (2, 2_048)
        q_THD = noise(num_sequences * tokens_each, num_heads, head_dim)
        inputs = contexts(num_sequences, tokens_each)
        blocks = num_sequences * CONTEXT // BLOCK_TOKENS
        pool = noise(blocks, 2, num_kv_heads, BLOCK_TOKENS, head_dim)
        yield Subject(
            kernel="attention",
            shape=launch.attention_class(head_dim, group, decode=decode, dtype=torch.bfloat16),
            default=launch.attention_default(
                head_dim, group, decode=decode, itemsize=2, chip=launch.capability(q_THD.device)
            ),
            candidates=[
                Launch(block_m=m, block_n=n, num_warps=warps, num_stages=stages)
                for m, n, warps, stages in product(
                    (rows,) if decode else (64, 128), (32, 64, 128), WARPS, STAGES
                )
                if m >= rows
            ],
            run=lambda one, q_THD=q_THD, pool=pool, inputs=inputs: (  # type: ignore[misc]
                attention.attention(q_THD, pool, inputs, heads, launch=one)
            ),
        )  # fmt: skip


def contexts(num_sequences: int, tokens_each: int) -> ForwardInputs:
    """Of CONTEXT tokens each, this step's included, in blocks in no order."""
    num_blocks = CONTEXT // BLOCK_TOKENS
    order = torch.randperm(num_sequences * num_blocks, device=subject.DEVICE, dtype=torch.int32)
    nothing = torch.empty(0, dtype=torch.int64, device=subject.DEVICE)
    lengths_S = np.full(num_sequences, tokens_each, np.int64)
    slots_GS1 = slots(lengths_S, np.full(num_sequences, CONTEXT, np.int64), [None])
    starts_S1 = (
        torch.arange(num_sequences + 1, dtype=torch.int32, device=subject.DEVICE) * tokens_each
    )
    return ForwardInputs(
        token_ids_T=nothing,
        positions_T=nothing,
        slots_GT=nothing[None],
        starts_S1=starts_S1,
        ends_S=torch.full_like(starts_S1[1:], CONTEXT),
        tables_GSB=order.view(1, num_sequences, num_blocks),
        rows_R=nothing,
        slots_GS1=torch.from_numpy(slots_GS1).to(subject.DEVICE),
        work=work(lengths_S, slots_GS1),
    )
