"""The gate of an MLP: SwiGLU and GeGLU (Shazeer 2020), and GPT-OSS's clamped variant; or alone.

Twin: `engine.ops.torch_ops.TorchOps.gated`.
"""

# Shapes: T tokens, F features of the MLP.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import SWIGLU_ALPHA, SWIGLU_LIMIT, Activation
from engine.ops.triton.bound import Bound, begin_early, dependent
from engine.ops.triton.launch import FUSED, as_stride

TILE = 1_024
_ALPHA, _LIMIT = tl.constexpr(SWIGLU_ALPHA), tl.constexpr(SWIGLU_LIMIT)
_GELU = tl.constexpr((2 / torch.pi) ** 0.5)


@triton.jit  # type: ignore[untyped-decorator]
def activation_of(gate, up, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `engine.ops.contract.Activation` says, of float32."""
    if ACTIVATION == "silu":
        made = gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh z) / 2 = sigmoid(2 z)
        made = gate * tl.sigmoid((gate + 0.044715 * gate * gate * gate) * (2 * _GELU)) * up
    else:
        tl.static_assert(ACTIVATION == "swiglu_oai")
        # Not minimum and maximum: they would turn NaN into the limit.
        gate = tl.where(gate > _LIMIT, _LIMIT, gate)
        up = tl.where(up > _LIMIT, _LIMIT, tl.where(up < -_LIMIT, -_LIMIT, up))
        made = (up + 1) * gate * tl.sigmoid(gate * _ALPHA)
    return made


@triton.jit  # type: ignore[untyped-decorator]
def gated_kernel(  # type: ignore[no-untyped-def]
    gate_up, out, row_stride, width,
    ACTIVATION: tl.constexpr, ALONE: tl.constexpr, TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (t, i) does tile i of row t; gate in the first half of a row, up in the second, or
    all of it a gate of ones."""
    begin_early(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < width
    gate = tl.load(gate_up + token * row_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = 1.0
    if not ALONE:
        up = tl.load(gate_up + token * row_stride + width + at, mask=inside, other=0.0)
        up = up.to(tl.float32)
    made = activation_of(gate, up, ACTIVATION)
    tl.store(out + token * width + at, made.to(out.dtype.element_ty), mask=inside)


def gated(
    gate_up: Tensor, activation: Activation, *, dtype: torch.dtype, alone: bool = False,
    early: bool = False,
) -> Tensor:  # fmt: skip
    """[T, F] in `dtype` of [T, 2 F]; `alone`: of [T, F]. `early` as
    `engine.ops.triton.bound.dependent`."""
    num_tokens, width = gate_up.shape
    width = width if alone else width // 2
    out_TF = gate_up.new_empty((num_tokens, width), dtype=dtype)
    if num_tokens:
        bound = _bound(gate_up.device, (gate_up.dtype, dtype), activation, alone, early)
        grid = (num_tokens, -(-width // TILE), 1)
        bound.launch(gated_kernel, grid, gate_up, out_TF, as_stride(gate_up, 0), width)
    return out_TF


@cache
def _bound(
    device: torch.device, dtypes: object, activation: Activation, alone: bool,
    early: bool,
) -> Bound:  # fmt: skip
    constants = {"ACTIVATION": activation, "ALONE": alone, "TILE": TILE, "DEPENDENT": early}
    return Bound(constants, {**FUSED, **dependent(early)})
