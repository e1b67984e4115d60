"""The C kernels as `engine.ops.contract.Ops`; checks per call only what a slip could crash.

Every row's result is the same bits whatever the batch, the chunking or the number of threads; with
oneDNN's packed bfloat16 linears, which choose by the number of rows, between the linears only.
"""

# Shapes: T tokens, K features in, N features out, F features of the MLP, D head dim, J experts
# of a token.

import ctypes
from collections.abc import Iterable
from ctypes import c_float, c_long, c_void_p
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import Activation, Experts, ExpertWeights, HeadShape, Linear, Norm
from engine.ops.cpu.build import bound
from engine.ops.cpu.experts import NativeExperts
from engine.ops.cpu.layer_args import Site, site
from engine.ops.cpu.linears import NativeLinear, OneDnnLinear
from engine.ops.inputs import ForwardInputs
from engine.ops.torch_ops import LoopedExperts, TorchLinear, WidenedHead, expert_pairs

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
ACTIVATIONS: dict[Activation, int] = {name: i for i, name in enumerate(get_args(Activation))}
"""In the order of `enum activation` in elementwise.c."""


class NativeOps:
    """See `engine.ops.contract.Ops`."""

    name = "native"

    def __init__(
        self, kernels: ctypes.CDLL, *, io_dtype: torch.dtype, kv_dtype: torch.dtype, onednn: bool
    ) -> None:
        self.io_dtype = io_dtype
        self._kernels, self._onednn, self._kv_dtype = kernels, onednn, kv_dtype
        self._pool: KvPool | None = None
        self._sites: dict[int, Site] = {}
        io, kv = SUFFIXES[io_dtype], SUFFIXES[kv_dtype]
        p, n, f = c_void_p, c_long, c_float
        self._norm = bound(kernels, f"norm_{io}", p, p, f, p, p, f, n, p, n, n)
        self._post_norm = bound(kernels, f"post_norm_{io}", p, p, p, f, n, p, n, n)
        self._gated = bound(kernels, f"gated_{io}", p, p, n, n, n, n)
        self._rotate_store = bound(kernels, f"rotate_store_{io}_{kv}", p, p, n, p, p, n)
        self._attend = bound(kernels, f"attend_{io}_{kv}", p, p, p, p, p, p, n, n)

    def linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, *, added: bool = False, gated: bool = False
    ) -> Linear:
        if self._onednn:
            return OneDnnLinear(weight_NK, bias_N)
        return self._native_linear(weight_NK, bias_N)

    def float32_linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> Linear:
        """Our own kernel where it works in float32, since its rows do not depend on the batch."""
        if self.io_dtype == torch.float32:
            return self.linear(weight_NK, bias_N)
        return TorchLinear.of_dtype(weight_NK, bias_N, torch.float32)

    def head(self, weight_NK: Tensor, bias_N: Tensor | None) -> WidenedHead:
        return WidenedHead(self.linear(weight_NK, bias_N))

    def _native_linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> NativeLinear:
        return NativeLinear(self._kernels, weight_NK, bias_N, io_dtype=self.io_dtype)

    def experts(
        self, weights: Iterable[ExpertWeights], *, num_experts: int, activation: Activation
    ) -> Experts:
        if self._onednn:
            pairs = expert_pairs(weights, OneDnnLinear)
            return LoopedExperts(pairs, partial(self.gated, activation=activation))
        linears = expert_pairs(weights, self._native_linear)
        assert len(linears) == num_experts
        return NativeExperts(self._kernels, linears, activation=ACTIVATIONS[activation])

    def norm(
        self, x_TK: Tensor, delta: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0
    ) -> Tensor:
        assert x_TK.is_contiguous() and (delta is None or delta.is_contiguous())
        out_TK = torch.empty(x_TK.shape, dtype=self.io_dtype)
        self._norm(
            x_TK.data_ptr(), 0 if delta is None else delta.data_ptr(), delta_scale,
            *_norm_args(norm), out_TK.data_ptr(), *x_TK.shape,
        )  # fmt: skip
        return out_TK

    def post_norm(self, y_TK: Tensor, norm: Norm) -> Tensor:
        assert y_TK.is_contiguous() and y_TK.dtype == self.io_dtype
        out_TK = torch.empty_like(y_TK)
        self._post_norm(y_TK.data_ptr(), *_norm_args(norm), out_TK.data_ptr(), *y_TK.shape)
        return out_TK

    def rotate_and_store(
        self, qkv: Tensor, rotations_T2D: Tensor | None, heads: HeadShape, pool: KvPool,
        inputs: ForwardInputs,
    ) -> None:  # fmt: skip
        rotations, num_turned = 0, 0
        if rotations_T2D is not None:
            assert rotations_T2D.is_contiguous() and rotations_T2D.dtype == torch.float32
            rotations, num_turned = rotations_T2D.data_ptr(), 2 * rotations_T2D.shape[-1]
        assert qkv.is_contiguous() and num_turned <= heads.head_dim
        self._rotate_store(
            qkv.data_ptr(), rotations, num_turned, _group(inputs.slots_GT, heads.group),
            self._site(heads, pool).address, qkv.shape[0],
        )  # fmt: skip

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        here, tables_GSB = self._site(heads, pool), inputs.tables_GSB
        out = torch.empty(qkv.shape[0], here.q_width, dtype=self.io_dtype)
        self._attend(
            qkv.data_ptr(), out.data_ptr(), here.address,
            inputs.starts_S1.data_ptr(), inputs.ends_S.data_ptr(),
            _group(tables_GSB, heads.group), tables_GSB.shape[2], tables_GSB.shape[1],
        )  # fmt: skip
        return out

    def gated_linear(self, gate_up: Linear, x_TK: Tensor, activation: Activation) -> Tensor:
        return self.gated(gate_up(x_TK), activation)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return self._activated(gate_up, activation, gate_up.shape[1] // 2)

    def activated(self, x_TF: Tensor, activation: Activation) -> Tensor:
        assert activation != "swiglu_oai"
        return self._activated(x_TF, activation, x_TF.shape[1])

    def _activated(self, x: Tensor, activation: Activation, num_out: int) -> Tensor:
        assert x.is_contiguous()
        out_TF = torch.empty(len(x), num_out, dtype=self.io_dtype)
        self._gated(
            x.data_ptr(), out_TF.data_ptr(), len(x), num_out, ACTIVATIONS[activation],
            num_out == x.shape[1],
        )  # fmt: skip
        return out_TF

    def _site(self, heads: HeadShape, pool: KvPool) -> Site:
        if pool is not self._pool:
            assert pool.tensor.dtype == self._kv_dtype
            self._pool, self._sites = pool, {}
        found = self._sites.get(id(heads))
        if found is None:
            found = self._sites[id(heads)] = site(heads, pool)
        return found


def _norm_args(norm: Norm | None) -> tuple[int, int, float, bool]:
    if norm is None:
        return 0, 0, 0.0, False
    bias = 0 if norm.bias_K is None else norm.bias_K.data_ptr()
    return norm.weight_K.data_ptr(), bias, norm.eps, norm.centred


def _group(tensor: Tensor, group: int) -> int:
    """Address of the part that is of one KV group; indexing would cost more than the kernel."""
    assert tensor.is_contiguous() and group < tensor.shape[0]
    return tensor.data_ptr() + group * tensor.stride(0) * tensor.element_size()
