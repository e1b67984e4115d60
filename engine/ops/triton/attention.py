"""Paged attention on tensor cores: launches that of decodes, of chunks, and what joins splits.

The query heads that share a KV head are the rows of one tile, with as many tokens of a chunk as
fit. Contexts are cut into splits of a fixed size (`engine.ops.work`; Flash-Decoding, Dao et al.
2023), each a work item; a row in one split is written at once, what others leave in float32 is
joined by `reduce_splits`.

What holds: a row's bits depend on its own query and context, on the launch parameters, and on how
many tokens its sequence has in the step; not on the other rows, nor, in a context of one split, on
where its chunk starts. With `uniform` they depend on its query and context alone: one shape of
tile for decodes and chunks, which join splits of one size in one order. Twin:
`engine.ops.torch_ops.paged_attention`.
"""

# Shapes: T tokens, S sequences, G KV heads, B blocks, H query heads, D head dim.

from functools import cache

import torch
from torch import Tensor

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.bound import Bound, dependent
from engine.ops.triton.chunk_attention import chunk_kernel
from engine.ops.triton.decode_attention import decode_kernel
from engine.ops.triton.launch import (
    UNKNOWN,
    Launch,
    as_stride,
    attention_class,
    attention_default,
    capability,
    chosen,
    power_of_two,
)
from engine.ops.triton.reduce_splits import reduce_splits
from engine.ops.work import SPLIT_ROWS

MOST_PROGRAMS = 2_048
"""So many are launched for decodes, KV heads included; each takes every so many-th item."""


def attention(
    q_THD: Tensor, layer_pool: Tensor, inputs: ForwardInputs, heads: HeadShape, *,
    launch: Launch | None = None, uniform: bool = False, early: bool = False,
) -> Tensor:  # fmt: skip
    """[T, H D] as `engine.ops.torch_ops.paged_attention`; layer_pool [B, 2, G, S, D]. Rows of
    tokens that no sequence owns (they pad a batch) are left undefined. `launch` for tests and the
    tuner, `early` as `engine.ops.triton.bound.dependent`. Raises ValueError for inputs without the
    host's part, `ForwardInputs.work`."""
    num_tokens, num_heads, dim = q_THD.shape
    out = torch.empty(num_tokens, num_heads * dim, dtype=q_THD.dtype, device=q_THD.device)
    if not num_tokens or not inputs.num_sequences:
        return out
    work, slots_GS1 = inputs.work, inputs.slots_GS1
    if work is None or slots_GS1 is None:
        raise ValueError("work: None, must be made on the host (engine.ops.inputs.with_work)")
    tables_SB, num_kv_heads = inputs.tables_GSB[heads.group], heads.num_kv_heads
    given = (
        inputs.starts_S1, inputs.ends_S, slots_GS1[heads.group], tables_SB, heads.sinks_H,
        q_THD.stride(0), out.stride(0), *layer_pool.stride()[:3], heads.scale,
        heads.softcap or 0.0, as_stride(tables_SB, 0), inputs.num_sequences,
    )  # fmt: skip
    kind = (
        num_heads, num_kv_heads, dim, layer_pool.shape[3], heads.window, heads.softcap is not None,
        heads.sinks_H is not None, work.split_tokens, q_THD.dtype, layer_pool.dtype,
        q_THD.device, uniform, early, launch,
    )  # fmt: skip
    for part in work.passes_G[heads.group]:
        num_slots = part.num_slots if part.joined else 0
        scratch = torch.empty(
            num_slots * num_heads * (dim + 2), dtype=torch.float32, device=q_THD.device
        )
        cut = (part.first, part.last, part.first_slot, num_slots)
        if work.has_decodes:
            programs = max(1, min(part.num_slots, -(-MOST_PROGRAMS // num_kv_heads)))
            bound, _ = bound_of(*kind, decode=True)
            grid = (num_kv_heads, programs, 1)
            bound.launch(decode_kernel, grid, q_THD, layer_pool, out, scratch, *given, *cut)
        if work.chunk_splits:
            bound, tile_tokens = bound_of(*kind, decode=False)
            tiles = num_tokens // tile_tokens + inputs.num_sequences
            grid = (tiles, num_kv_heads, 1 if uniform else work.chunk_splits)
            bound.launch(chunk_kernel, grid, q_THD, layer_pool, out, scratch, *given, *cut)
        if part.joined:
            reduce_splits(scratch, out, inputs, heads, part, uniform=uniform, early=early)
    return out


@cache
def bound_of(
    num_heads: int, num_kv_heads: int, dim: int, block_tokens: int, window: int | None,
    has_cap: bool, has_sinks: bool, split_tokens: int, dtype: torch.dtype, kv_dtype: torch.dtype,
    device: torch.device, uniform: bool, early: bool, launch: Launch | None, *, decode: bool,
) -> tuple[Bound, int]:  # fmt: skip
    """A kernel with its constants, and the tokens of a tile: as measured for the device, else by
    default. Uniform, always by default: what was measured differs between devices of a kind. What
    is bound knows its tensors' dtypes: hence `kv_dtype`, the pool's."""
    group = num_heads // num_kv_heads
    if launch is None:
        launch = attention_default(
            dim, group, decode=decode and not uniform, windowed=window is not None,
            uniform=uniform, itemsize=dtype.itemsize,
            chip=UNKNOWN if uniform else capability(device),
        )  # fmt: skip
        shape = attention_class(dim, group, decode=decode, dtype=dtype)
        launch = launch if uniform else chosen("attention", shape, device, launch)
    constants = {
        "NUM_HEADS": num_heads, "GROUP": group, "HEAD_DIM": dim, "BLOCK_TOKENS": block_tokens,
        "WINDOW": window or 0, "HAS_CAP": has_cap, "HAS_SINKS": has_sinks, "SPLIT": split_tokens,
        **({} if decode else {"SPLIT_ROWS": SPLIT_ROWS, "UNIFORM": uniform}),
        "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n,
        "BLOCK_D": max(16, power_of_two(dim)), "DEPENDENT": early,
    }  # fmt: skip
    return Bound(constants, {**launch.options, **dependent(early)}), launch.block_m // group
