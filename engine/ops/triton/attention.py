"""Paged attention on tensor cores: one kernel for chunks of a prompt, decode and verification.

An online softmax over tiles of keys (FlashAttention-2, Dao 2023) that reads keys and values
through block tables (PagedAttention, Kwon et al. 2023). The query heads that share a KV head are
the rows of one tile, with as many tokens as fit, so that decode fills tensor cores too. Few long
sequences are split along their context (Flash-Decoding, Dao et al. 2023): splits have a fixed
size in tokens, leave (max, sum, values) in float32, and `reduce_splits` joins them in order.

What holds: a row's bits depend on its own query and context, on the launch parameters and on
whether splits are made; not on the other rows, nor on where its chunk starts. The latter two
follow from shapes (`engine.ops.triton.launch`): a batch with a chunk in it may round differently
from decode alone, and a batch too large for splits from a small one. Twin:
`engine.ops.torch_ops.paged_attention`.
"""

# Shapes: T tokens, S sequences, B blocks of a table, H query heads, G KV heads, D head dim,
# P splits, M rows (tokens x heads of a KV head) and N keys of a tile.

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.launch import (
    SPLIT_TOKENS,
    Launch,
    as_stride,
    attention_class,
    attention_default,
    chosen,
    num_splits,
    power_of_two,
    split_programs,
)
from engine.ops.triton.reduce_splits import reduce_splits

LOG2_E = tl.constexpr(1.4426950408889634)


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
def over_keys(  # type: ignore[no-untyped-def]
    query, best, total, position, base, table, low, high, block_stride, kv_stride, scale, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The online softmax of a tile's rows over keys low .. high: (max, sum, values)."""
    dims = tl.arange(0, BLOCK_D)
    in_dims = dims < HEAD_DIM
    values = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        within = (keys >= low) & (keys < high)  # beyond lies anything, NaN included
        block = tl.load(table + keys // BLOCK_TOKENS, mask=within, other=0).to(tl.int64)
        where = base + block * block_stride + keys % BLOCK_TOKENS * HEAD_DIM
        mask = within[:, None] & in_dims[None, :]
        key = tl.load(where[:, None] + dims[None, :], mask=mask, other=0.0)
        score = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee") * scale
        if HAS_CAP:  # tanh by exp, which is 0 or infinite where tanh is -1 or 1
            grown = tl.exp2(score * (2 * LOG2_E / softcap))
            score = softcap * (1 - 2 / (grown + 1))
        seen = within[None, :] & (keys[None, :] <= position[:, None])
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
def by_splits(  # type: ignore[no-untyped-def]
    query, position, base, table, low, high, first_split, partial, limits, row, inside, real,
    block_stride, kv_stride, scale, softcap, SPLIT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Every so many-th split from `first_split` on, each to its own place of `partial`."""
    dims = tl.arange(0, BLOCK_D)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for split in range(first_split, tl.cdiv(high, SPLIT), tl.num_programs(2)):
        peak, mass, values = over_keys(
            query, best, total, position, base, table,
            tl.maximum(low, split * SPLIT), tl.minimum(high, (split + 1) * SPLIT),
            block_stride, kv_stride, scale, softcap,
            HEAD_DIM, BLOCK_TOKENS, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        to = row + split
        tl.store(partial + to[:, None] * HEAD_DIM + dims[None, :], values, mask=inside)
        tl.store(limits + 2 * to, peak, mask=real)
        tl.store(limits + 2 * to + 1, mass, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def at_once(  # type: ignore[no-untyped-def]
    query, position, base, table, low, high, sinks, head, real,
    block_stride, kv_stride, scale, softcap, HAS_SINKS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What attention answers over keys low .. high, the sinks included."""
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if HAS_SINKS:
        best = tl.load(sinks + head, mask=real, other=0.0) * LOG2_E
        total = tl.full((BLOCK_M,), 1.0, tl.float32)
    best, total, values = over_keys(
        query, best, total, position, base, table, low, high,
        block_stride, kv_stride, scale, softcap,
        HEAD_DIM, BLOCK_TOKENS, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    return values / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_sequences", "num_splits", "table_stride"],
    do_not_specialize_on_alignment=["starts", "ends", "tables"],
)
def attention_kernel(  # type: ignore[no-untyped-def]
    q, pool, out, partial, limits, starts, ends, tables, sinks, num_sequences, num_splits,
    q_stride, out_stride, block_stride, kv_stride, head_stride, table_stride, scale, softcap,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (tile, g, p): the rows of one query tile over every so many-th split of their
    context, from the p-th that they see. WINDOW 0: none; SPLIT 0: the context is one split, and
    `out` is written rather than `partial`."""
    tokens: tl.constexpr = BLOCK_M // GROUP
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    sequence = sequence_of(starts, num_sequences, tile, tokens)
    start, stop = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    begin = start + (tile - (start // tokens + sequence)) * tokens
    if begin >= stop:
        return
    end = tl.load(ends + sequence)
    before = end - stop  # position of a token less its place in the batch
    rows = tl.arange(0, BLOCK_M)
    token = begin + rows // GROUP
    position = before + token
    real = (rows < tokens * GROUP) & (token < stop)
    head = kv_head * GROUP + rows % GROUP
    high = tl.minimum(before + begin + tokens, end)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(before + begin - WINDOW + 1, 0)
    first_split = low
    if SPLIT > 0:
        first_split = low // SPLIT + tl.program_id(2)
        if first_split * SPLIT >= high:
            return
    dims = tl.arange(0, BLOCK_D)
    in_dims = dims < HEAD_DIM
    at = token.to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM + dims[None, :]
    inside = real[:, None] & in_dims[None, :]
    query = tl.load(q + at, mask=inside, other=0.0)
    table = tables + sequence.to(tl.int64) * table_stride
    base = pool + kv_head.to(tl.int64) * head_stride
    if SPLIT > 0:
        row = (token.to(tl.int64) * NUM_HEADS + head) * num_splits
        by_splits(
            query, position, base, table, low, high, first_split, partial, limits, row, inside,
            real, block_stride, kv_stride, scale, softcap, SPLIT,
            HEAD_DIM, BLOCK_TOKENS, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    else:
        values = at_once(
            query, position, base, table, low, high, sinks, head, real,
            block_stride, kv_stride, scale, softcap, HAS_SINKS,
            HEAD_DIM, BLOCK_TOKENS, WINDOW, HAS_CAP, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        at = token.to(tl.int64)[:, None] * out_stride + head[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def attention(
    q_THD: Tensor, layer_pool: Tensor, inputs: ForwardInputs, heads: HeadShape, *,
    launch: Launch | None = None, splits: int | None = None,
) -> Tensor:  # fmt: skip
    """[T, H D] as `engine.ops.torch_ops.paged_attention`; layer_pool [B, 2, G, S, D]. Rows of
    tokens that no sequence owns (they pad a batch) are left undefined. `splits` and `launch` for
    tests and the tuner; otherwise they follow from the shapes."""
    num_tokens, num_heads, dim = q_THD.shape
    out = torch.empty(num_tokens, num_heads * dim, dtype=q_THD.dtype, device=q_THD.device)
    if not num_tokens or not inputs.num_sequences:
        return out
    num_kv_heads, group = heads.num_kv_heads, num_heads // heads.num_kv_heads
    tables_SB = inputs.tables_GSB[heads.group]
    decode = num_tokens <= inputs.num_sequences
    if splits is None:
        splits = _num_splits(q_THD, layer_pool, inputs, heads, decode=decode)
    launch = launch or _launch(q_THD, group, heads, decode=decode, in_splits=splits > 1)
    split_tokens = 0 if splits == 1 else SPLIT_TOKENS
    shape = (num_tokens, num_heads, splits)
    rows = shape if split_tokens else (1, 1, 1)
    partial = torch.empty(*rows, dim, dtype=torch.float32, device=q_THD.device)
    limits = torch.empty(*rows, 2, dtype=torch.float32, device=q_THD.device)
    tiles = num_tokens // (launch.block_m // group) + inputs.num_sequences
    programs = split_programs(splits, num_programs=tiles * num_kv_heads)
    attention_kernel[(tiles, num_kv_heads, programs)](
        q_THD, layer_pool, out, partial, limits, inputs.starts_S1, inputs.ends_S, tables_SB,
        heads.sinks_H, inputs.num_sequences, splits,
        q_THD.stride(0), out.stride(0), layer_pool.stride(0), layer_pool.stride(1),
        layer_pool.stride(2), as_stride(tables_SB, 0), heads.scale, heads.softcap or 0.0,
        NUM_HEADS=num_heads, GROUP=group, HEAD_DIM=dim, BLOCK_TOKENS=layer_pool.shape[3],
        WINDOW=heads.window or 0, HAS_CAP=heads.softcap is not None,
        HAS_SINKS=heads.sinks_H is not None, SPLIT=split_tokens,
        BLOCK_M=launch.block_m, BLOCK_N=launch.block_n, BLOCK_D=max(16, power_of_two(dim)),
        **launch.options,
    )  # fmt: skip
    if split_tokens:
        reduce_splits(partial, limits, out, inputs, heads, split_tokens=split_tokens)
    return out


def _num_splits(
    q_THD: Tensor, layer_pool: Tensor, inputs: ForwardInputs, heads: HeadShape, *, decode: bool
) -> int:
    num_tokens, num_heads, dim = q_THD.shape
    group = num_heads // heads.num_kv_heads
    tile_tokens = _launch(q_THD, group, heads, decode=decode).block_m // group
    num_tiles = max(inputs.num_sequences, num_tokens // tile_tokens)
    return num_splits(
        num_programs=num_tiles * heads.num_kv_heads,
        row_bytes=4 * num_tokens * num_heads * dim,
        capacity_tokens=inputs.tables_GSB.shape[2] * layer_pool.shape[3],
    )


def _launch(
    q_THD: Tensor, group: int, heads: HeadShape, *, decode: bool, in_splits: bool = False
) -> Launch:
    dim = q_THD.shape[-1]
    default = attention_default(
        dim, group, decode=decode, in_splits=in_splits, windowed=heads.window is not None,
        itemsize=q_THD.element_size(),
    )  # fmt: skip
    shape = attention_class(dim, group, decode=decode, in_splits=in_splits, dtype=q_THD.dtype)
    return chosen("attention", shape, q_THD.device, default)
