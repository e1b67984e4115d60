"""A mixture of experts in C: tokens grouped by expert, each linear one call for all experts.

A token's result does not depend on the tokens beside it.
"""

# Shapes: T tokens, K hidden features, F features of the MLP, E experts, J experts of a token,
# R = T J rows, grouped by expert.

import ctypes
from collections.abc import Sequence
from ctypes import c_long, c_void_p

import torch
from torch import Tensor

from engine.ops.cpu.build import bound
from engine.ops.cpu.linears import NativeLinear


class _Linear(ctypes.Structure):
    """struct linear of linear.c."""

    _fields_ = (("weights", c_void_p), ("bias", c_void_p))


class NativeExperts:
    """See `engine.ops.contract.Experts`."""

    def __init__(
        self,
        kernels: ctypes.CDLL,
        linears_E: Sequence[tuple[NativeLinear, NativeLinear]],
        *,
        activation: int,
    ) -> None:
        self._linears_E, self._activation = tuple(linears_E), activation
        gate_up, down = self._linears_E[0]
        self._num_in, self._num_out, self._width = gate_up.num_in, down.num_out, down.num_in
        self._io_dtype = gate_up.io_dtype
        for gate_up, down in self._linears_E:
            assert gate_up.num_in == down.num_out == self._num_in
            assert gate_up.num_out == 2 * down.num_in == 2 * self._width
        self._gate_up, self._down = (
            (_Linear * len(linears_E))(*(_Linear(one[i].weights, one[i].bias) for one in linears_E))
            for i in (0, 1)
        )
        io, (p, n) = "bf16" if self._io_dtype == torch.bfloat16 else "f32", (c_void_p, c_long)
        self._run = bound(kernels, f"experts_linear_{gate_up.inner}", p, p, p, p, n, n, n)
        self._gated = bound(kernels, f"gated_{io}", p, p, n, n, n, n)
        self._combine = bound(kernels, f"combine_{io}", p, p, p, p, n, n, n)

    def __call__(self, x_TK: Tensor, ids_TJ: Tensor, weights_TJ: Tensor) -> Tensor:
        num_experts, (num_tokens, num_chosen) = len(self._linears_E), ids_TJ.shape
        assert x_TK.dtype == self._io_dtype and x_TK.shape[1] == self._num_in
        weights_TJ = weights_TJ.contiguous()
        assert weights_TJ.dtype == torch.float32 and weights_TJ.shape == ids_TJ.shape
        ids_R = ids_TJ.flatten()
        counts_E = ids_R.bincount(minlength=num_experts)
        assert len(counts_E) == num_experts, "an expert that is not there"
        offsets = torch.zeros(num_experts + 1, dtype=torch.int64)
        torch.cumsum(counts_E, dim=0, out=offsets[1:])
        order_R = ids_R.argsort(stable=True)
        places_R = torch.empty_like(order_R)
        places_R[order_R] = torch.arange(len(order_R))
        x_RK = x_TK[order_R // num_chosen]
        gate_up = self._linear(self._gate_up, x_RK, offsets, 2 * self._width)
        middle_RF = x_RK.new_empty(len(order_R), self._width)
        self._gated(
            gate_up.data_ptr(), middle_RF.data_ptr(), len(order_R), self._width, self._activation,
            False,
        )  # fmt: skip
        y_RK = self._linear(self._down, middle_RF, offsets, self._num_out)
        out_TK = x_TK.new_empty(num_tokens, self._num_out)
        self._combine(
            y_RK.data_ptr(), places_R.data_ptr(), weights_TJ.data_ptr(), out_TK.data_ptr(),
            num_tokens, num_chosen, self._num_out,
        )  # fmt: skip
        return out_TK

    def _linear(
        self, experts: "ctypes.Array[_Linear]", x: Tensor, offsets: Tensor, num_out: int
    ) -> Tensor:
        y = x.new_empty(x.shape[0], num_out)
        self._run(
            x.data_ptr(), ctypes.addressof(experts), y.data_ptr(), offsets.data_ptr(),
            len(experts), num_out, x.shape[1],
        )  # fmt: skip
        return y
