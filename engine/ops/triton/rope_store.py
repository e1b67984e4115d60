"""Norms and rotates the query and key heads, and writes keys and values to their slots.

One pass over qkv between its linear and attention: q changes in place, k and v go to the paged
pool. Rotation as in RoFormer (Su et al., 2021), dim r with dim r + R / 2; norms of q and k per head
(Qwen3, Gemma 3; layer norms: Cohere, StableLM) or over all heads (OLMo 2). Twin:
`engine.ops.torch_ops.TorchOps.rotate_and_store`.
"""

# Shapes: T tokens, H query heads, G KV heads, D head dim, R dims that turn, N heads of a tile.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import HeadShape
from engine.ops.triton.bound import Bound, begin_early, dependent
from engine.ops.triton.launch import FUSED, as_stride, power_of_two

TILE_VALUES = 2_048
"""Heads of a program together hold about so many."""


@triton.jit  # type: ignore[untyped-decorator]
def _squares(row, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean square over all heads."""
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, NUM_HEADS * HEAD_DIM, TILE):
        at = start + tl.arange(0, TILE)
        part = tl.load(row + at, mask=at < NUM_HEADS * HEAD_DIM, other=0.0).to(tl.float32)
        total += part * part
    return tl.sum(total, axis=0) / (NUM_HEADS * HEAD_DIM)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(low, high, turns, pair, half: tl.constexpr):  # type: ignore[no-untyped-def]
    """Two halves of the dims that turn, by the cos and then the sin at `turns`."""
    cos = tl.load(turns + pair, mask=pair < half, other=0.0)
    sin = tl.load(turns + half + pair, mask=pair < half, other=0.0)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit  # type: ignore[untyped-decorator]
def _move(  # type: ignore[no-untyped-def]
    row, goal, goal_stride, weight, rotations, token, mean, eps, first,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TURNED: tl.constexpr, NORM: tl.constexpr,
    HEADS: tl.constexpr, HALF_TILE: tl.constexpr, REST_TILE: tl.constexpr,
):  # fmt: skip
    """Heads first .. first + HEADS of `row` to `goal`: the dims that turn in two halves, whose
    lanes match, then the rest. `mean` is the mean square of all heads for NORM "whole"."""
    half: tl.constexpr = TURNED // 2
    heads = first + tl.arange(0, HEADS)[:, None]
    real = heads < NUM_HEADS
    pair, rest = tl.arange(0, HALF_TILE)[None, :], TURNED + tl.arange(0, REST_TILE)[None, :]
    in_pair, in_rest = real & (pair < half), real & (rest < HEAD_DIM)
    source, target = row + heads * HEAD_DIM, goal + heads * goal_stride
    tail = tl.load(source + rest, mask=in_rest, other=0.0)
    if TURNED > 0:
        low = tl.load(source + pair, mask=in_pair, other=0.0)
        high = tl.load(source + half + pair, mask=in_pair, other=0.0)
    # Other lanes may store to what a slower one has yet to load.
    tl.debug_barrier()
    if NORM != "none":
        wide_tail = tail.to(tl.float32)
        if TURNED > 0:
            wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        if NORM == "layer":
            sums = tl.sum(wide_tail, axis=1)
            if TURNED > 0:
                sums += tl.sum(wide_low + wide_high, axis=1)
            centre = (sums / HEAD_DIM)[:, None]
            wide_tail = tl.where(in_rest, wide_tail - centre, 0.0)
            if TURNED > 0:
                wide_low = tl.where(in_pair, wide_low - centre, 0.0)
                wide_high = tl.where(in_pair, wide_high - centre, 0.0)
        if NORM == "whole":
            scale = tl.rsqrt(mean + eps)
        else:
            squares = tl.sum(wide_tail * wide_tail, axis=1)
            if TURNED > 0:
                squares += tl.sum(wide_low * wide_low + wide_high * wide_high, axis=1)
            scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        own = weight + heads * (0 if NORM == "head" else HEAD_DIM)
        tail = wide_tail * scale * tl.load(own + rest, mask=in_rest, other=0.0)
    tl.store(target + rest, tail.to(goal.dtype.element_ty), mask=in_rest)
    if TURNED > 0:
        if NORM == "none":
            wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        else:
            wide_low = wide_low * scale * tl.load(own + pair, mask=in_pair, other=0.0)
            wide_high = wide_high * scale * tl.load(own + half + pair, mask=in_pair, other=0.0)
        turns = rotations + token * TURNED
        turned_low, turned_high = _turned(wide_low, wide_high, turns, pair, half)
        tl.store(target + pair, turned_low.to(goal.dtype.element_ty), mask=in_pair)
        tl.store(target + half + pair, turned_high.to(goal.dtype.element_ty), mask=in_pair)


@triton.jit  # type: ignore[untyped-decorator]
def _move_all(  # type: ignore[no-untyped-def]
    row, goal, goal_stride, weight, rotations, token, eps, first, step,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TURNED: tl.constexpr, NORM: tl.constexpr,
    TILE: tl.constexpr, HEADS: tl.constexpr, HALF_TILE: tl.constexpr, REST_TILE: tl.constexpr,
):  # fmt: skip
    """As `_move`, every `step` heads from `first` on."""
    mean = 0.0
    if NORM == "whole":
        mean = _squares(row, NUM_HEADS, HEAD_DIM, TILE)
    for head in range(first, NUM_HEADS, step):
        _move(
            row, goal, goal_stride, weight, rotations, token, mean, eps, head,
            NUM_HEADS, HEAD_DIM, TURNED, NORM, HEADS, HALF_TILE, REST_TILE,
        )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["slots"])  # type: ignore[untyped-decorator]
def rope_store_kernel(  # type: ignore[no-untyped-def]
    qkv, rotations, q_norm, k_norm, slots, pool,
    row_stride, block_stride, kv_stride, head_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    TURNED: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, Q_PARTS: tl.constexpr, TILE: tl.constexpr,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF_TILE: tl.constexpr, REST_TILE: tl.constexpr, WHOLE_TILE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (t, p) does part p of token t: of q, then k, then v."""
    begin_early(DEPENDENT)
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = qkv + token * row_stride
    if part < Q_PARTS:
        _move_all(
            row, row, HEAD_DIM, q_norm, rotations, token, eps, part * Q_HEADS, Q_PARTS * Q_HEADS,
            NUM_HEADS, HEAD_DIM, TURNED, Q_NORM, TILE, Q_HEADS, HALF_TILE, REST_TILE,
        )  # fmt: skip
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            goal = pool + slot // BLOCK_TOKENS * block_stride + slot % BLOCK_TOKENS * HEAD_DIM
            row += NUM_HEADS * HEAD_DIM
            if part == Q_PARTS:
                _move_all(
                    row, goal, head_stride, k_norm, rotations, token, eps, 0, KV_HEADS,
                    NUM_KV_HEADS, HEAD_DIM, TURNED, K_NORM, TILE, KV_HEADS, HALF_TILE, REST_TILE,
                )  # fmt: skip
            else:
                row += NUM_KV_HEADS * HEAD_DIM
                _move_all(
                    row, goal + kv_stride, head_stride, k_norm, rotations, token, eps, 0, KV_HEADS,
                    NUM_KV_HEADS, HEAD_DIM, 0, "none", TILE, KV_HEADS, HALF_TILE, WHOLE_TILE,
                )  # fmt: skip


def rope_store(
    qkv: Tensor, rotations_T2D: Tensor | None, heads: HeadShape, layer_pool: Tensor,
    slots_T: Tensor, *, early: bool = False,
) -> None:  # fmt: skip
    """See `engine.ops.contract.Ops.rotate_and_store`; layer_pool [B, 2, G, S, D]. A row with
    slot -1 is turned but not stored. `early` as `engine.ops.triton.bound.dependent`."""
    num_tokens = qkv.shape[0]
    if not num_tokens:
        return
    num_turned = 0
    if rotations_T2D is not None:
        assert rotations_T2D.is_contiguous() and rotations_T2D.dtype == torch.float32
        num_turned = 2 * rotations_T2D.shape[-1]
    block_stride, kv_stride, head_stride, _, _ = layer_pool.stride()
    parts, bound = _bound(
        qkv.device, qkv.dtype, layer_pool.dtype, heads.num_heads,
        heads.num_kv_heads, heads.head_dim, _kind(heads.q_norm, heads),
        _kind(heads.k_norm, heads), num_turned, layer_pool.shape[3], early,
    )  # fmt: skip
    bound.launch(
        rope_store_kernel, (num_tokens, parts, 1), qkv, rotations_T2D, heads.q_norm, heads.k_norm,
        slots_T, layer_pool, as_stride(qkv, 0), block_stride, kv_stride, head_stride,
        heads.norm_eps,
    )  # fmt: skip


@cache
def _bound(
    device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype,
    num_heads: int, num_kv_heads: int, dim: int, q_norm: str, k_norm: str, num_turned: int,
    block_tokens: int, early: bool,
) -> tuple[int, Bound]:  # fmt: skip
    """Programs of a token, and the launch. A norm over all of q needs one program to see q before
    it turns."""
    room = max(1, TILE_VALUES // power_of_two(dim))
    q_heads = min(room, power_of_two(num_heads))
    q_parts = 1 if q_norm == "whole" else -(-num_heads // q_heads)
    constants = {
        "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": dim,
        "TURNED": num_turned, "Q_NORM": q_norm, "K_NORM": k_norm,
        "BLOCK_TOKENS": block_tokens, "Q_PARTS": q_parts, "TILE": TILE_VALUES,
        "Q_HEADS": q_heads, "KV_HEADS": min(room, power_of_two(num_kv_heads)),
        "HALF_TILE": power_of_two(num_turned // 2), "REST_TILE": power_of_two(dim - num_turned),
        "WHOLE_TILE": power_of_two(dim), "DEPENDENT": early,
    }  # fmt: skip
    return q_parts + 2, Bound(constants, {**FUSED, **dependent(early)})


def _kind(weight: Tensor | None, heads: HeadShape) -> str:
    if weight is None:
        return "none"
    if heads.centred_norms:
        return "layer"
    return "head" if weight.shape[0] == heads.head_dim else "whole"
