"""A mixture of experts as two grouped products, with its rows sorted by expert on the device.

Every (token, expert) pair is a row; each expert's rows fill whole tiles, the last one padded, so
that a tile has one expert (the alignment of vLLM's fused mixture, after MegaBlocks, Gale et al.
2022). How many tiles there are is bounded by shapes: the rest have no expert and return at once.
A row depends on its token and experts alone. Twin: `engine.ops.torch_ops.LoopedExperts`.
"""

# Shapes: T tokens, J experts of a token, P = T J pairs, E experts, K features in, N out, F of the
# MLP, M rows and N columns of a tile.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import Activation
from engine.ops.triton.gated import TILE, gated
from engine.ops.triton.launch import (
    FUSED,
    Launch,
    as_stride,
    chosen,
    experts_class,
    experts_default,
    power_of_two,
)

SCAN = 1_024
"""Pairs that an aligning program looks at in one step."""


@triton.jit(do_not_specialize=["num_pairs"])  # type: ignore[untyped-decorator]
def count_kernel(ids, counts, num_pairs, SCAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program e counts the pairs of expert e."""
    expert = tl.program_id(0)
    found = tl.zeros((SCAN,), tl.int32)
    for first in range(0, num_pairs, SCAN):
        at = first + tl.arange(0, SCAN)
        mine = tl.load(ids + at, mask=at < num_pairs, other=-1) == expert
        found += mine.to(tl.int32)
    tl.store(counts + expert, tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])  # type: ignore[untyped-decorator]
def place_kernel(  # type: ignore[no-untyped-def]
    ids, counts, pairs, experts, num_pairs, num_tiles,
    NUM_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, SCAN: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Program e lists the pairs of expert e, ascending, from its first tile on; one more marks
    the tiles that are left over. Empty places hold `num_pairs`."""
    expert = tl.program_id(0)
    numbers = tl.arange(0, ALL)
    counts_of_all = tl.load(counts + numbers, mask=numbers < NUM_EXPERTS, other=0)
    tiles_of_all = (counts_of_all + BLOCK_M - 1) // BLOCK_M
    tile = tl.sum(tl.where(numbers < expert, tiles_of_all, 0), axis=0)
    if expert == NUM_EXPERTS:
        for left in range(tile, num_tiles):
            tl.store(experts + left, -1)
    else:
        count = tl.sum(tl.where(numbers == expert, counts_of_all, 0), axis=0)
        end = tile + (count + BLOCK_M - 1) // BLOCK_M
        for own in range(tile, end):
            tl.store(experts + own, expert)
        listed = 0
        for first in range(0, num_pairs, SCAN):
            at = first + tl.arange(0, SCAN)
            mine = tl.load(ids + at, mask=at < num_pairs, other=-1) == expert
            place = tile * BLOCK_M + listed + tl.cumsum(mine.to(tl.int32), axis=0) - 1
            tl.store(pairs + place, at, mask=mine)
            listed += tl.sum(mine.to(tl.int32), axis=0)
        empty = tile * BLOCK_M + count + tl.arange(0, BLOCK_M)
        tl.store(pairs + empty, num_pairs, mask=empty < end * BLOCK_M)


@triton.jit(do_not_specialize=["num_pairs"])  # type: ignore[untyped-decorator]
def grouped_kernel(  # type: ignore[no-untyped-def]
    x, weights, biases, pairs, experts, factors, out, num_pairs, num_columns, width,
    x_stride, expert_stride, row_stride,
    PAIRS_OF_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (n, m): columns of tile n for the rows of tile m: out[pair] = x[pair //
    PAIRS_OF_ROW] @ weights[expert].T + bias, times the pair's factor."""
    expert = tl.load(experts + tl.program_id(1)).to(tl.int64)
    if expert < 0:
        return
    pair = tl.load(pairs + tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = pair < num_pairs
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = column < num_columns
    rows = x + pair[:, None] // PAIRS_OF_ROW * x_stride
    weight_rows = weights + expert * expert_stride + column.to(tl.int64)[None, :] * row_stride
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, width, BLOCK_K):
        at = first + tl.arange(0, BLOCK_K)
        in_width = at < width
        left = tl.load(rows + at[None, :], mask=real[:, None] & in_width[None, :], other=0.0)
        mask = in_width[:, None] & in_columns[None, :]
        right = tl.load(weight_rows + at[:, None], mask=mask, other=0.0)
        sums = tl.dot(left, right, sums, input_precision="ieee")
    if HAS_BIAS:
        bias = tl.load(biases + expert * num_columns + column, mask=in_columns, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    if HAS_FACTOR:
        sums *= tl.load(factors + pair, mask=real, other=0.0)[:, None]
    goal = out + pair[:, None] * num_columns + column[None, :]
    tl.store(goal, sums.to(out.dtype.element_ty), mask=real[:, None] & in_columns[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def combine_kernel(  # type: ignore[no-untyped-def]
    answers, out, WIDTH: tl.constexpr, CHOICES: tl.constexpr, TILE: tl.constexpr
):
    """Program (t, i): tile i of token t, its experts' answers added in order, in float32."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < WIDTH
    total = tl.zeros((TILE,), tl.float32)
    for choice in tl.static_range(CHOICES):
        row = answers + (token * CHOICES + choice) * WIDTH
        total += tl.load(row + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + at, total.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """Pairs by expert, in tiles of `block_m`."""

    pairs: Tensor  # int32 [tiles * block_m]: a pair, or P where there is none
    experts: Tensor  # int32 [tiles]: -1 where there is none


def align(ids_P: Tensor, *, num_experts: int, block_m: int) -> Aligned:
    """An id outside of 0 .. E - 1 belongs to no expert: its pair is in no tile."""
    num_pairs, device = len(ids_P), ids_P.device
    num_tiles = num_pairs // block_m + min(num_pairs, num_experts)
    counts_E = torch.empty(num_experts, dtype=torch.int32, device=device)
    pairs = torch.empty(num_tiles * block_m, dtype=torch.int32, device=device)
    experts = torch.empty(num_tiles, dtype=torch.int32, device=device)
    count_kernel[(num_experts,)](ids_P, counts_E, num_pairs, SCAN=SCAN, **FUSED)
    place_kernel[(num_experts + 1,)](
        ids_P, counts_E, pairs, experts, num_pairs, num_tiles,
        NUM_EXPERTS=num_experts, BLOCK_M=block_m, SCAN=SCAN, ALL=power_of_two(num_experts), **FUSED,
    )  # fmt: skip
    return Aligned(pairs=pairs, experts=experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedExperts:
    """See `engine.ops.contract.Experts`."""

    gate_up_ENK: Tensor  # N = 2 F
    gate_up_bias_EN: Tensor | None
    down_EKF: Tensor
    down_bias_EK: Tensor | None
    activation: Activation
    launch: Launch | None = None
    """For the tuner; otherwise it follows from the shapes."""

    def __call__(self, x_TK: Tensor, ids_TJ: Tensor, weights_TJ: Tensor) -> Tensor:
        (num_tokens, width), choices = x_TK.shape, ids_TJ.shape[1]
        if not num_tokens:
            return torch.empty_like(x_TK)
        launch = self.launch or self._launch(x_TK, ids_TJ.numel())
        ids_P, weights_P = ids_TJ.reshape(-1), weights_TJ.reshape(-1)
        tiles = align(ids_P, num_experts=len(self.gate_up_ENK), block_m=launch.block_m)
        gate_up = x_TK.new_empty(len(ids_P), self.gate_up_ENK.shape[1])
        grouped(
            x_TK, self.gate_up_ENK, self.gate_up_bias_EN, tiles, None, gate_up,
            pairs_of_row=choices, launch=launch,
        )  # fmt: skip
        hidden_PF = gated(gate_up, self.activation, dtype=x_TK.dtype)
        out_PK = x_TK.new_zeros(len(ids_P), width)  # a pair without an expert adds nothing
        grouped(
            hidden_PF, self.down_EKF, self.down_bias_EK, tiles, weights_P, out_PK,
            pairs_of_row=1, launch=launch,
        )  # fmt: skip
        return combined(out_PK, choices)

    def _launch(self, x_TK: Tensor, num_pairs: int) -> Launch:
        num_experts, width, num_hidden = self.down_EKF.shape
        rows = num_pairs / num_experts
        default = experts_default(rows, itemsize=x_TK.element_size())
        shape = experts_class(rows, num_experts, width, num_hidden, x_TK.dtype)
        return chosen("experts", shape, x_TK.device, default)


def invariant_experts(dtype: torch.dtype) -> Launch:
    """One for all batches: the tiles of few rows, which many only repeat."""
    return experts_default(0, itemsize=dtype.itemsize)


def combined(answers_PK: Tensor, choices: int) -> Tensor:
    """[T, K]: the sum over each token's pairs."""
    num_tokens, width = len(answers_PK) // choices, answers_PK.shape[1]
    out_TK = answers_PK.new_empty(num_tokens, width)
    combine_kernel[(num_tokens, triton.cdiv(width, TILE), 1)](
        answers_PK, out_TK, WIDTH=width, CHOICES=choices, TILE=TILE, **FUSED
    )
    return out_TK


def grouped(
    x: Tensor, weights_ENK: Tensor, biases_EN: Tensor | None, tiles: Aligned,
    factors_P: Tensor | None, out_PN: Tensor, *, pairs_of_row: int, launch: Launch,
) -> None:  # fmt: skip
    """`out_PN` of each pair in `tiles`; row r of `x` serves pairs r * pairs_of_row and on."""
    num_columns, width = weights_ENK.shape[1:]
    grouped_kernel[(triton.cdiv(num_columns, launch.block_n), len(tiles.experts))](
        x, weights_ENK, biases_EN, tiles.pairs, tiles.experts, factors_P, out_PN,
        len(out_PN), num_columns, width,
        as_stride(x, 0), weights_ENK.stride(0), as_stride(weights_ENK, 1),
        PAIRS_OF_ROW=pairs_of_row, HAS_BIAS=biases_EN is not None,
        HAS_FACTOR=factors_P is not None,
        BLOCK_M=launch.block_m, BLOCK_N=launch.block_n, BLOCK_K=launch.block_k,
        **launch.options,
    )  # fmt: skip
