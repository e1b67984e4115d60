"""Linears with packed weights: our own kernels, and oneDNN's on CPUs with AMX.

Packing copies; the caller drops the tensor it gave.
"""

# Shapes: T tokens, K features in, N features out, P panels of `panel` outputs.

import ctypes
from ctypes import c_long, c_void_p
from typing import Any, Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.ops.cpu.build import bound

_PACKED_FOR_TOKENS = 32
"""oneDNN lays weights out for a row count; one between decode and prefill serves both."""


Inner = Literal["f32", "bf16", "dot"]
"""Suffix of the kernel in linear.c: float32 in and out over float32 or bfloat16 weights, or
bfloat16 everywhere."""


def pack(weight_NK: Tensor, *, panel: int, inner: Inner) -> Tensor:
    """Panels of `panel` output rows, [P, K, panel]; the last is padded with zeros. For "bf16"
    rows i and panel / 2 + i lie side by side: the kernel widens two vectors from one word. For
    "dot" features k and k + 1 of a row do (an odd K is padded): it multiplies pairs."""
    num_rows, num_features = weight_NK.shape
    num_panels = -(-num_rows // panel)
    odd = num_features % 2 if inner == "dot" else 0
    weight_NK = F.pad(weight_NK, (0, odd, 0, num_panels * panel - num_rows))
    match inner:
        case "f32":
            return weight_NK.view(num_panels, panel, num_features).transpose(1, 2).contiguous()
        case "bf16":
            halves = weight_NK.view(num_panels, 2, panel // 2, num_features)
            return halves.permute(0, 3, 2, 1).contiguous()
        case "dot":
            pairs = weight_NK.view(num_panels, panel, -1, 2)
            return pairs.transpose(1, 2).contiguous()
        case _:
            assert_never(inner)


class NativeLinear:
    """Activations of `io_dtype` over float32 or bfloat16 weights. A row's result does not
    depend on the rows beside it."""

    def __init__(
        self,
        kernels: ctypes.CDLL,
        weight_NK: Tensor,
        bias_N: Tensor | None,
        *,
        io_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_out, self.num_in = weight_NK.shape
        self.inner, self.io_dtype = inner_of(kernels, weight_NK.dtype, io_dtype), io_dtype
        self._packed = pack(weight_NK, panel=kernels.baton_panel(), inner=self.inner)
        self._bias_N = None if bias_N is None else bias_N.float().contiguous()
        self._run = bound(kernels, f"linear_{self.inner}", *[c_void_p] * 4, *[c_long] * 3)
        self.weights = self._packed.data_ptr()
        self.bias = 0 if self._bias_N is None else self._bias_N.data_ptr()

    def __call__(self, x_TK: Tensor) -> Tensor:
        num_tokens, num_in = x_TK.shape
        assert num_in == self.num_in and x_TK.dtype == self.io_dtype and x_TK.is_contiguous()
        y_TN = torch.empty(num_tokens, self.num_out, dtype=self.io_dtype)
        self._run(
            x_TK.data_ptr(), self.weights, self.bias, y_TN.data_ptr(),
            num_tokens, self.num_out, self.num_in,
        )  # fmt: skip
        return y_TN


def inner_of(kernels: ctypes.CDLL, weight_dtype: torch.dtype, io_dtype: torch.dtype) -> Inner:
    if io_dtype == torch.bfloat16:
        assert weight_dtype == torch.bfloat16 and kernels.baton_dot()
        return "dot"
    return "bf16" if weight_dtype == torch.bfloat16 else "f32"


class OneDnnLinear:
    """bfloat16 in and out through oneDNN, weights packed once. Private ops of torch, for they
    are worth a third of decode and half of prefill over F.linear on AMX (docs/lab.md)."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        ops: Any = torch.ops.mkldnn
        self._packed: Tensor = ops._reorder_linear_weight(weight_NK, _PACKED_FOR_TOKENS)
        self._bias_N = None if bias_N is None else bias_N.to(weight_NK.dtype)
        self._run = ops._linear_pointwise

    def __call__(self, x_TK: Tensor) -> Tensor:
        y_TN: Tensor = self._run(x_TK, self._packed, self._bias_N, "none", [], "")
        return y_TN


def onednn_works(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU pack a small linear and multiply by it correctly."""
    weight_NK = torch.arange(96, dtype=torch.float32).view(6, 16) / 96
    x_TK = torch.ones(2, 16)
    try:
        y_TN = OneDnnLinear(weight_NK.to(dtype), torch.ones(6))(x_TK.to(dtype))
    except (RuntimeError, AttributeError):  # refused, or gone from a newer torch
        return False
    return torch.allclose(y_TN.float(), x_TK @ weight_NK.T + 1, rtol=0.02)
