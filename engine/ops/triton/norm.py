"""RMS and layer norms: of the residual after adding to it, or of a part's answer.

The residual is float32 and changed in place, so one pass reads and writes it once. What is added
may come in parts, as a linear over splits of K leaves it: they are summed in order, in float32.
Twins: `engine.ops.torch_ops.TorchOps.norm` and `.post_norm`.
"""

# Shapes: T tokens, K features, P parts.

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import Norm
from engine.ops.triton.bound import Bound, begin_early, dependent
from engine.ops.triton.launch import FUSED, power_of_two, row_warps


@triton.jit(do_not_specialize=["part_stride"])  # type: ignore[untyped-decorator]
def norm_kernel(  # type: ignore[no-untyped-def]
    x, delta, weight, bias, out, width, delta_scale, eps, part_stride,
    PARTS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr, TILE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program t does row t: x += scale * sum of the parts of delta; out = norm(x), or x without a
    weight."""
    begin_early(DEPENDENT)
    start = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, TILE)
    inside = at < width
    row = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        added = tl.load(delta + start + at, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            more = tl.load(delta + part * part_stride + start + at, mask=inside, other=0.0)
            added += more.to(tl.float32)
        row += delta_scale * added
        tl.store(x + start + at, row, mask=inside)
    if HAS_WEIGHT:
        if CENTRED:
            row = tl.where(inside, row - tl.sum(row, axis=0) / width, 0.0)
        mean = tl.sum(row * row, axis=0) / width
        row = row * tl.rsqrt(mean + eps) * tl.load(weight + at, mask=inside, other=0.0)
    if HAS_BIAS:
        row += tl.load(bias + at, mask=inside, other=0.0)
    tl.store(out + start + at, row.to(out.dtype.element_ty), mask=inside)


def normed(
    x_TK: Tensor, delta: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0,
    dtype: torch.dtype, early: bool = False,
) -> Tensor:  # fmt: skip
    """See `engine.ops.contract.Ops.norm`; `post_norm` is this one without a delta. [T, K] of
    `dtype`. `early` as `engine.ops.triton.bound.dependent`."""
    assert x_TK.is_contiguous() and (delta is None or delta.is_contiguous())
    num_tokens, width = x_TK.shape
    out_TK = x_TK.new_empty((num_tokens, width), dtype=dtype)
    if num_tokens == 0:
        return out_TK
    weight_K, bias_K, eps, centred = None, None, 0.0, False
    if norm is not None:
        weight_K, bias_K, eps, centred = norm.weight_K, norm.bias_K, norm.eps, norm.centred
    parts, delta_dtype = 0, None
    if delta is not None:
        parts, delta_dtype = delta.shape[0] if delta.dim() == 3 else 1, delta.dtype
    bound = bound_norm(
        x_TK.device, (x_TK.dtype, delta_dtype, dtype), width, parts,
        norm is not None, bias_K is not None, centred, early,
    )  # fmt: skip
    bound.launch(
        norm_kernel, (num_tokens, 1, 1), x_TK, delta, weight_K, bias_K, out_TK, width,
        float(delta_scale), eps, num_tokens * width if parts > 1 else 0,
    )  # fmt: skip
    return out_TK


@cache
def bound_norm(
    device: torch.device, dtypes: object, width: int, parts: int,
    has_weight: bool, has_bias: bool, centred: bool, early: bool,
) -> Bound:  # fmt: skip
    """The kernel with its constants; what it is bound to knows its tensors' dtypes."""
    tile = power_of_two(width)
    constants = {
        "PARTS": parts, "HAS_WEIGHT": has_weight, "HAS_BIAS": has_bias, "CENTRED": centred,
        "TILE": tile, "DEPENDENT": early,
    }  # fmt: skip
    return Bound(constants, {"num_warps": row_warps(tile), **FUSED, **dependent(early)})
