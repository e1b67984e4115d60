"""Steps of real sizes on torch's meta device: shapes and strides, no memory and no values."""

# Shapes: T tokens, S sequences, G KV groups, B blocks.

from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.load import MAX_HEAD_DIM
from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.work import AttentionWork, Pass

BF16 = torch.bfloat16
ARCHS = (80, 90, 100)
EVERY_DIM = (64, 96, 128, 256, MAX_HEAD_DIM)
BLOCK_TOKENS = 16


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def heads(dim: int, **more: Any) -> HeadShape:
    return HeadShape(num_heads=32, num_kv_heads=8, head_dim=dim, scale=dim**-0.5, layer=1, **more)


def layer_pool(dim: int, dtype: torch.dtype = BF16) -> Tensor:
    return meta(30_000, 32, 2, 8, BLOCK_TOKENS, dim, dtype=dtype)[:, 1]


def inputs(num_tokens: int, num_sequences: int) -> ForwardInputs:
    """Of decodes where there are as many tokens as sequences."""
    whole = Pass(first=0, last=num_sequences, first_slot=0, num_slots=2 * num_tokens, joined=True)
    decodes = num_tokens == num_sequences
    return ForwardInputs(
        token_ids_T=meta(num_tokens, dtype=torch.int64),
        positions_T=meta(num_tokens, dtype=torch.int64),
        slots_GT=meta(1, num_tokens, dtype=torch.int64),
        starts_S1=meta(num_sequences + 1, dtype=torch.int32),
        ends_S=meta(num_sequences, dtype=torch.int32),
        tables_GSB=meta(1, num_sequences, 8192 // BLOCK_TOKENS, dtype=torch.int32),
        rows_R=meta(num_sequences, dtype=torch.int64),
        slots_GS1=meta(1, num_sequences + 1, dtype=torch.int32),
        work=AttentionWork(
            passes_G=((whole,),), has_decodes=decodes, split_tokens=512,
            chunk_splits=0 if decodes else 2,
        ),
    )  # fmt: skip
