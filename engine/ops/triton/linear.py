"""A linear in tiles: for few rows, which read their weights once, and for all in the
batch-invariant mode.

K is cut into splits of a fixed size, each summed in float32 by itself. For few rows every split
has programs of its own, which leave their sums as parts (split-K), and whoever reads the parts
adds them in order: `engine.ops.triton.norm`, or a kernel here. For many rows one program walks
over all splits and adds them in that same order. So with one `Launch` for all batches a row's bits
depend on its own numbers alone, however many rows there are; that a tile's product does not depend
on a row's place in it is the hardware's, and is taken for granted. Twin:
`engine.ops.torch_ops.TorchLinear`.
"""

# Shapes: T tokens, K features in, N features out, F features of an MLP, P parts.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import Activation
from engine.ops.triton.bound import Bound, begin_early, dependent
from engine.ops.triton.gated import activation_of
from engine.ops.triton.launch import FUSED, Launch, as_stride

SUM_TILE = 1_024


@triton.jit  # type: ignore[untyped-decorator]
def over_split(  # type: ignore[no-untyped-def]
    x_rows, weight_rows, real, in_columns, first, last, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """The products of one tile over features first .. last, a multiple of BLOCK_K but at the end
    of the width."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(first, last, BLOCK_K):
        at = begin + tl.arange(0, BLOCK_K)
        if WIDTH % BLOCK_K == 0:
            left = tl.load(x_rows + at[None, :], mask=real[:, None], other=0.0)
            mask = in_columns[None, :]
        else:
            in_width = at < WIDTH
            left = tl.load(x_rows + at[None, :], mask=real[:, None] & in_width[None, :], other=0.0)
            mask = in_width[:, None] & in_columns[None, :]
        if ONCE:  # the only tile of rows: nobody reads these weights again in this step
            right = tl.load(
                weight_rows + at[:, None], mask=mask, other=0.0, eviction_policy="evict_first"
            )
        else:
            right = tl.load(weight_rows + at[:, None], mask=mask, other=0.0)
        sums = tl.dot(left, right, sums, input_precision="ieee")
    return sums


@triton.jit  # type: ignore[untyped-decorator]
def over_splits(  # type: ignore[no-untyped-def]
    x_rows, weight_rows, biases, real, in_columns, first_split, last_split,
    WIDTH: tl.constexpr, SPLIT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Sums of splits first .. last, added in order; the bias is the first of the row's terms."""
    if SPLIT >= WIDTH:
        total = over_split(
            x_rows, weight_rows, real, in_columns, 0, WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, ONCE
        )
        if HAS_BIAS:
            total += tl.load(biases, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if HAS_BIAS:  # noqa: SIM102 - a constant; the other is not
            if first_split == 0:
                total += tl.load(biases, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        for split in range(first_split, last_split):
            total += over_split(
                x_rows, weight_rows, real, in_columns,
                split * SPLIT, tl.minimum((split + 1) * SPLIT, WIDTH),
                WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, ONCE,
            )  # fmt: skip
    return total


@triton.jit(do_not_specialize=["num_rows", "part_stride"])  # type: ignore[untyped-decorator]
def linear_kernel(  # type: ignore[no-untyped-def]
    x, weights, biases, out, x_stride, row_stride, out_stride, num_rows, part_stride,
    NUM_COLUMNS: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, IN_PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ONCE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (m, n, p): a tile of x @ weights.T + bias, of split p where IN_PARTS; with an
    ACTIVATION of the gate's rows and, NUM_COLUMNS further on, those of up."""
    splits: tl.constexpr = tl.cdiv(WIDTH, SPLIT)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    real, in_columns = rows < num_rows, columns < NUM_COLUMNS
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    weight_rows = weights + columns.to(tl.int64)[None, :] * row_stride
    goal = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    first_split, last_split = 0, splits
    if IN_PARTS:
        first_split = tl.program_id(2)
        last_split = first_split + 1
        goal += first_split.to(tl.int64) * part_stride
    begin_early(DEPENDENT)
    made = over_splits(
        x_rows, weight_rows, biases + columns if HAS_BIAS else biases, real, in_columns,
        first_split, last_split, WIDTH, SPLIT, HAS_BIAS, BLOCK_M, BLOCK_N, BLOCK_K, ONCE,
    )  # fmt: skip
    if ACTIVATION != "none":
        other = columns.to(tl.int64) + NUM_COLUMNS
        up = over_splits(
            x_rows, weights + other[None, :] * row_stride,
            biases + other if HAS_BIAS else biases, real, in_columns,
            first_split, last_split, WIDTH, SPLIT, HAS_BIAS, BLOCK_M, BLOCK_N, BLOCK_K, ONCE,
        )  # fmt: skip
        made = activation_of(made, up, ACTIVATION)
    tl.store(goal, made.to(out.dtype.element_ty), mask=real[:, None] & in_columns[None, :])


@triton.jit(do_not_specialize=["part_stride"])  # type: ignore[untyped-decorator]
def sum_parts_kernel(  # type: ignore[no-untyped-def]
    parts, out, out_stride, part_stride, NUM_COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (t, i): tile i of row t, the parts added in order."""
    begin_early(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < NUM_COLUMNS
    total = tl.load(parts + row * NUM_COLUMNS + at, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(
            parts + part * part_stride + row * NUM_COLUMNS + at, mask=inside, other=0.0
        )
    tl.store(out + row * out_stride + at, total.to(out.dtype.element_ty), mask=inside)


def linear(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, launch: Launch,
    dtype: torch.dtype, activation: Activation | None = None, out: Tensor | None = None,
    early: bool = False,
) -> Tensor:  # fmt: skip
    """x @ weight.T + bias, [T, N] of `dtype`, written to `out` if one is given; with an
    `activation`, [T, F] of the gate's F rows and then up's. `early` as
    `engine.ops.triton.bound.dependent`."""
    num_rows, num_columns = x_TK.shape[0], weight_NK.shape[0] // (1 if activation is None else 2)
    if out is None:
        out = x_TK.new_empty((num_rows, num_columns), dtype=dtype)
    if not num_rows:
        return out
    count = _num_parts(num_rows, x_TK.shape[1], launch)
    if count == 1:
        _launch(x_TK, weight_NK, bias_N, out, launch, activation, early)
        return out
    assert activation is None, "a gate needs whole sums"
    parts_PTN = torch.empty((count, num_rows, num_columns), dtype=torch.float32, device=x_TK.device)
    _launch(x_TK, weight_NK, bias_N, parts_PTN, launch, None, early)
    bound = _bound_sum(x_TK.device, out.dtype, num_columns, count, early)
    grid = (num_rows, -(-num_columns // SUM_TILE), 1)
    bound.launch(sum_parts_kernel, grid, parts_PTN, out, as_stride(out, 0), num_rows * num_columns)
    return out


def linear_in_parts(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, launch: Launch, early: bool = False
) -> Tensor:
    """As `linear`, but float32 [P, T, N] that are yet to be added in order."""
    num_rows, num_columns = x_TK.shape[0], weight_NK.shape[0]
    count = _num_parts(num_rows, x_TK.shape[1], launch)
    parts_PTN = torch.empty((count, num_rows, num_columns), dtype=torch.float32, device=x_TK.device)
    if num_rows:
        _launch(x_TK, weight_NK, bias_N, parts_PTN, launch, None, early)
    return parts_PTN


def _split(width: int, launch: Launch) -> int:
    """Features of a split, whole tiles; follows from the width and the launch alone."""
    tiles = -(-width // launch.block_k)
    return -(-tiles // launch.splits) * launch.block_k


def _num_parts(num_rows: int, width: int, launch: Launch) -> int:
    """With more than one tile of rows there are programs enough."""
    return -(-width // _split(width, launch)) if num_rows <= launch.block_m else 1


def _launch(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out: Tensor, launch: Launch,
    activation: Activation | None, early: bool,
) -> None:  # fmt: skip
    num_rows, num_columns = x_TK.shape[0], out.shape[-1]
    in_parts = out.dim() == 3 and len(out) > 1
    programs = len(out) if in_parts else 1
    bias_dtype = None if bias_N is None else bias_N.dtype
    bound = _bound(
        x_TK.device, (x_TK.dtype, weight_NK.dtype, bias_dtype, out.dtype),
        num_columns, x_TK.shape[1], launch, in_parts, activation, num_rows <= launch.block_m,
        early,
    )  # fmt: skip
    grid = (-(-num_rows // launch.block_m), -(-num_columns // launch.block_n), programs)
    bound.launch(
        linear_kernel, grid, x_TK, weight_NK, bias_N, out, as_stride(x_TK, 0),
        as_stride(weight_NK, 0), out.stride(-2), num_rows, out.stride(0) if in_parts else 0,
    )  # fmt: skip


@cache
def _bound(
    device: torch.device, dtypes: tuple[torch.dtype | None, ...],
    num_columns: int, width: int, launch: Launch, in_parts: bool, activation: Activation | None,
    once: bool, early: bool,
) -> Bound:  # fmt: skip
    constants = {
        "NUM_COLUMNS": num_columns, "WIDTH": width, "SPLIT": _split(width, launch),
        "IN_PARTS": in_parts, "HAS_BIAS": dtypes[2] is not None,
        "ACTIVATION": activation or "none", "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n,
        "BLOCK_K": launch.block_k, "ONCE": once, "DEPENDENT": early,
    }  # fmt: skip
    return Bound(constants, {**launch.options, **dependent(early)})


@cache
def _bound_sum(
    device: torch.device, dtype: torch.dtype, num_columns: int, parts: int,
    early: bool,
) -> Bound:  # fmt: skip
    constants = {
        "NUM_COLUMNS": num_columns, "PARTS": parts, "TILE": SUM_TILE, "DEPENDENT": early,
    }  # fmt: skip
    return Bound(constants, {**FUSED, **dependent(early)})
