"""What is tried of attention: decode, chunks, chunks in splits."""

# Shapes: T tokens, S sequences, H query heads, D head dim.

from collections.abc import Iterator
from itertools import product

import torch

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton import attention, launch
from engine.ops.triton.launch import Launch
from tools.tune import subject
from tools.tune.subject import Subject, noise

BLOCK_TOKENS = 16
CONTEXT = 4_096


def attention_subjects(num_heads: int, num_kv_heads: int, head_dim: int) -> Iterator[Subject]:
    heads = HeadShape(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        scale=head_dim**-0.5, layer=0,
    )  # fmt: skip
    group = num_heads // num_kv_heads
    rows = max(16, launch.power_of_two(group))
    for decode, in_splits in ((True, False), (False, False), (False, True)):
        num_sequences, tokens_each = (32, 1) if decode else (2, 40) if in_splits else (2, 2_048)
        splits = CONTEXT // launch.SPLIT_TOKENS if in_splits else 1
        kind: dict[str, bool] = {"decode": decode, "in_splits": in_splits}
        q_THD = noise(num_sequences * tokens_each, num_heads, head_dim)
        inputs = _inputs(num_sequences, tokens_each)
        blocks = num_sequences * CONTEXT // BLOCK_TOKENS
        pool = noise(blocks, 2, num_kv_heads, BLOCK_TOKENS, head_dim)
        yield Subject(
            kernel="attention",
            shape=launch.attention_class(head_dim, group, **kind, dtype=torch.bfloat16),
            default=launch.attention_default(head_dim, group, **kind, itemsize=2),
            candidates=[
                Launch(block_m=m, block_n=n, num_warps=warps, num_stages=stages)
                for m, n, warps, stages in product(
                    (rows,) if decode else (32, 64) if in_splits else (64, 128),
                    (32, 64, 128), (4, 8), (2, 3, 4),
                )
                if m >= rows
            ],
            run=lambda one, q_THD=q_THD, pool=pool, inputs=inputs, splits=splits: (  # type: ignore[misc]
                attention.attention(q_THD, pool, inputs, heads, launch=one, splits=splits)
            ),
        )  # fmt: skip


def _inputs(num_sequences: int, tokens_each: int) -> ForwardInputs:
    num_blocks = CONTEXT // BLOCK_TOKENS
    order = torch.randperm(num_sequences * num_blocks, device=subject.DEVICE, dtype=torch.int32)
    nothing = torch.empty(0, dtype=torch.int64, device=subject.DEVICE)
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
    )
