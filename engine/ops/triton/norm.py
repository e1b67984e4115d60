"""RMS and layer norms: of the residual after adding to it, or of a part's answer.

The residual is float32 and changed in place, so one pass reads and writes it once. Twins:
`engine.ops.torch_ops.TorchOps.norm` and `.post_norm`.
"""

# Shapes: T tokens, K features.

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.contract import Norm
from engine.ops.triton.launch import FUSED, power_of_two, row_warps


@triton.jit  # type: ignore[untyped-decorator]
def norm_kernel(  # type: ignore[no-untyped-def]
    x, delta, weight, bias, out, width, delta_scale, eps,
    HAS_DELTA: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program t does row t: x += scale * delta; out = norm(x), or x without a weight."""
    start = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, TILE)
    inside = at < width
    row = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        added = tl.load(delta + start + at, mask=inside, other=0.0).to(tl.float32)
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
    x_TK: Tensor, delta_TK: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """See `engine.ops.contract.Ops.norm`; `post_norm` is this one without a delta. [T, K] of
    `dtype`."""
    assert x_TK.is_contiguous() and (delta_TK is None or delta_TK.is_contiguous())
    num_tokens, width = x_TK.shape
    out_TK = torch.empty_like(x_TK, dtype=dtype)
    if num_tokens == 0:
        return out_TK
    tile = power_of_two(width)
    weight_K, bias_K, eps = None, None, 0.0
    if norm is not None:
        weight_K, bias_K, eps = norm.weight_K, norm.bias_K, norm.eps
    norm_kernel[(num_tokens,)](
        x_TK, delta_TK, weight_K, bias_K, out_TK, width, delta_scale, eps,
        HAS_DELTA=delta_TK is not None, HAS_WEIGHT=norm is not None, HAS_BIAS=bias_K is not None,
        CENTRED=norm is not None and norm.centred, TILE=tile,
        num_warps=row_warps(tile), **FUSED,
    )  # fmt: skip
    return out_TK
