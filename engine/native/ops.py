"""The C kernels as `engine.ops.Ops`; checks per call only what a slip could crash.

Made by `engine.ops`. With float32 activations every row's result is the same bits whatever the
batch, the chunking or the number of threads. With oneDNN's packed bfloat16 linears that holds
for the steps between the linears only: oneDNN picks its kernel by the number of rows.
"""

# Shapes: T tokens, K features in, N features out, F features of the MLP, D head dim.

import ctypes
from collections.abc import Iterable
from ctypes import c_float, c_int64, c_long, c_void_p
from typing import Any

import torch
from torch import Tensor

from engine.inputs import ForwardInputs
from engine.kvpool import KvPool
from engine.layers import LoopedExperts, TorchOps
from engine.native.linears import NativeLinear, OneDnnLinear
from engine.ops import Activation, ExpertWeights, HeadShape, Linear

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
MAX_HEAD_DIM = 512  # attention.c


class NativeOps:
    """See `engine.ops.Ops`."""

    name = "native"

    def __init__(
        self, kernels: ctypes.CDLL, *, io_dtype: torch.dtype, kv_dtype: torch.dtype, onednn: bool
    ) -> None:
        self.io_dtype = io_dtype
        self._kernels, self._onednn, self._kv_dtype = kernels, onednn, kv_dtype
        self._twin = TorchOps(io_dtype=io_dtype)
        io, kv = SUFFIXES[io_dtype], SUFFIXES[kv_dtype]
        pointers, longs = [c_void_p], [c_long]
        self._norm = self._bound(f"norm_{io}", pointers * 3 + [c_float, c_void_p] + longs * 2)
        self._silu_mul = self._bound(f"silu_mul_{io}", pointers * 2 + longs * 2)
        self._rotate_store = self._bound(
            f"rotate_store_{io}_{kv}", pointers * 7 + longs * 2 + [c_float]
        )
        self._attend = self._bound(f"attend_{io}_{kv}", pointers * 7 + longs * 4 + [c_float])

    def _bound(self, name: str, argtypes: list[Any]) -> Any:
        function = getattr(self._kernels, name)
        function.argtypes, function.restype = argtypes, None
        return function

    def linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> Linear:
        if self._onednn:
            return OneDnnLinear(weight_NK, bias_N)
        return NativeLinear(self._kernels, weight_NK, bias_N)

    def experts(
        self, weights: Iterable[ExpertWeights], *, num_experts: int, activation: Activation
    ) -> LoopedExperts:
        pairs = tuple(
            (
                self.linear(one.gate_up_NK, one.gate_up_bias_N),
                self.linear(one.down_KF, one.down_bias_K),
            )
            for one in weights
        )
        return LoopedExperts(pairs, lambda gate_up: self.gated(gate_up, activation))

    def norm(
        self,
        x_TK: Tensor,
        delta_TK: Tensor | None,
        weight_K: Tensor | None,
        eps: float,
        *,
        delta_scale: float = 1.0,
    ) -> Tensor:
        assert x_TK.is_contiguous() and (delta_TK is None or delta_TK.is_contiguous())
        if weight_K is None or delta_scale != 1.0:
            return self._twin.norm(x_TK, delta_TK, weight_K, eps, delta_scale=delta_scale)
        out_TK = torch.empty(x_TK.shape, dtype=self.io_dtype)
        self._norm(
            x_TK.data_ptr(),
            0 if delta_TK is None else delta_TK.data_ptr(),
            weight_K.data_ptr(),
            eps,
            out_TK.data_ptr(),
            *x_TK.shape,
        )
        return out_TK

    def post_norm(self, y_TK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
        return self._twin.post_norm(y_TK, weight_K, eps)

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotations_T2D: Tensor | None,
        heads: HeadShape,
        pool: KvPool,
        inputs: ForwardInputs,
    ) -> None:
        norms = (heads.q_norm, heads.k_norm)
        if (
            rotations_T2D is None
            or 2 * rotations_T2D.shape[-1] != heads.head_dim
            or any(norm is not None and len(norm) != heads.head_dim for norm in norms)
        ):
            self._twin.rotate_and_store(qkv, rotations_T2D, heads, pool, inputs)
            return
        assert qkv.is_contiguous() and rotations_T2D.is_contiguous()
        geometry = _Pool.of(pool)
        self._rotate_store(
            qkv.data_ptr(),
            rotations_T2D.data_ptr(),
            0 if heads.q_norm is None else heads.q_norm.data_ptr(),
            0 if heads.k_norm is None else heads.k_norm.data_ptr(),
            inputs.slots_GT[heads.group].data_ptr(),
            self._layer(pool, heads.layer),
            ctypes.addressof(geometry),
            inputs.num_tokens,
            heads.num_heads,
            heads.norm_eps,
        )

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        if heads.softcap is not None or heads.sinks_H is not None:
            return self._twin.attend(qkv, heads, pool, inputs)
        out = torch.empty(inputs.num_tokens, heads.num_heads * heads.head_dim, dtype=self.io_dtype)
        geometry = _Pool.of(pool)
        tables_SB = inputs.tables_GSB[heads.group]
        self._attend(
            qkv.data_ptr(),
            out.data_ptr(),
            self._layer(pool, heads.layer),
            ctypes.addressof(geometry),
            inputs.starts_S1.data_ptr(),
            inputs.ends_S.data_ptr(),
            tables_SB.data_ptr(),
            tables_SB.shape[1],
            inputs.num_sequences,
            heads.num_heads,
            heads.window or 0,
            heads.scale,
        )
        return out

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        if activation != "silu":
            return self._twin.gated(gate_up, activation)
        assert gate_up.is_contiguous()
        num_tokens, width = gate_up.shape
        out_TF = torch.empty(num_tokens, width // 2, dtype=self.io_dtype)
        self._silu_mul(gate_up.data_ptr(), out_TF.data_ptr(), num_tokens, width // 2)
        return out_TF

    def _layer(self, pool: KvPool, layer: int) -> int:
        """Address of the first block's part of `layer`."""
        tensor = pool.tensor
        assert tensor.dtype == self._kv_dtype
        return tensor.data_ptr() + layer * tensor.stride(1) * tensor.element_size()


class _Pool(ctypes.Structure):
    """struct pool of attention.c."""

    _fields_ = (
        ("block_stride", c_int64),
        ("block_tokens", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
    )

    @classmethod
    def of(cls, pool: KvPool) -> "_Pool":
        layout = pool.layout
        return cls(pool.tensor.stride(0), layout.block_tokens, layout.num_kv_heads, layout.head_dim)
