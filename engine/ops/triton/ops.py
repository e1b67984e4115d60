"""The Triton kernels as `engine.ops.contract.Ops`: for GPUs, and under Triton's interpreter for
tests.

Linears are cuBLAS's or our own (`engine.ops.triton.linears`); the residual is float32. Every call
only enqueues work: it reads nothing back, so that a CUDA graph can hold a whole forward. Rows that
only pad a batch are harmless: slot -1 stores nothing, a sequence without tokens computes nothing.
"""

# Shapes: T tokens, K features in, N features out, F features of an MLP, D head dim, E experts.

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import Activation, ExpertWeights, HeadShape, Linear, Norm
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.attention import attention
from engine.ops.triton.experts import GroupedExperts, invariant_experts
from engine.ops.triton.gated import gated
from engine.ops.triton.linears import GpuLinear, Kind
from engine.ops.triton.norm import normed
from engine.ops.triton.rope_store import rope_store


class TritonOps:
    """See `engine.ops.contract.Ops`."""

    name = "triton"

    def __init__(
        self, *, io_dtype: torch.dtype, batch_invariant: bool = False, early: bool = False
    ) -> None:
        """`batch_invariant`: a row's bits do not depend on the batch, nor on how its prompt was
        cut into chunks. `early` as `engine.ops.triton.bound.dependent`."""
        self.io_dtype, self.batch_invariant, self._early = io_dtype, batch_invariant, early
        self._pool: KvPool | None = None
        self._layers: dict[int, Tensor] = {}

    def linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, *, added: bool = False, gated: bool = False
    ) -> GpuLinear:
        kind: Kind = "added" if added else "gated" if gated else "plain"
        return self._linear(weight_NK, bias_N, kind, self.io_dtype)

    def float32_linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> GpuLinear:
        return self._linear(weight_NK, bias_N, "plain", torch.float32)

    def head(self, weight_NK: Tensor, bias_N: Tensor | None) -> GpuLinear:
        return self._linear(weight_NK, bias_N, "head", self.io_dtype)

    def _linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, kind: Kind, dtype: torch.dtype
    ) -> GpuLinear:
        bias_N = None if bias_N is None else bias_N.to(dtype)
        invariant = self.batch_invariant
        return GpuLinear(weight_NK.to(dtype), bias_N, kind, invariant, self._early)

    def experts(
        self, weights: Iterable[ExpertWeights], *, num_experts: int, activation: Activation
    ) -> GroupedExperts:
        stacks: tuple[Tensor | None, ...] = ()
        count = 0
        for one in weights:
            parts = (one.gate_up_NK, one.gate_up_bias_N, one.down_KF, one.down_bias_K)
            if not stacks:
                stacks = tuple(self._stack(part, num_experts) for part in parts)
            for stack, part in zip(stacks, parts, strict=True):
                assert (stack is None) == (part is None), "a bias for all experts or for none"
                if stack is not None and part is not None:
                    stack[count].copy_(part)
            count += 1
            del one, parts, part  # the next one is read while nobody holds this one
        assert count == num_experts
        gate_up_ENK, gate_up_bias_EN, down_EKF, down_bias_EK = stacks
        assert gate_up_ENK is not None and down_EKF is not None
        return GroupedExperts(
            gate_up_ENK=gate_up_ENK,
            gate_up_bias_EN=gate_up_bias_EN,
            down_EKF=down_EKF,
            down_bias_EK=down_bias_EK,
            activation=activation,
            launch=invariant_experts(self.io_dtype) if self.batch_invariant else None,
        )

    def norm(
        self, x_TK: Tensor, delta: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0
    ) -> Tensor:
        return normed(
            x_TK, delta, norm, delta_scale=delta_scale, dtype=self.io_dtype, early=self._early
        )

    def post_norm(self, y_TK: Tensor, norm: Norm) -> Tensor:
        return normed(y_TK, None, norm, dtype=self.io_dtype, early=self._early)

    def rotate_and_store(
        self, qkv: Tensor, rotations_T2D: Tensor | None, heads: HeadShape, pool: KvPool,
        inputs: ForwardInputs,
    ) -> None:  # fmt: skip
        slots_T = inputs.slots_GT[heads.group]
        layer_pool = self._layer(heads, pool)
        rope_store(qkv, rotations_T2D, heads, layer_pool, slots_T, early=self._early)

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        q_THD = qkv.view(qkv.shape[0], -1, heads.head_dim)[:, : heads.num_heads]
        layer_pool = self._layer(heads, pool)
        return attention(
            q_THD, layer_pool, inputs, heads, uniform=self.batch_invariant, early=self._early
        )

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return gated(gate_up, activation, dtype=self.io_dtype, early=self._early)

    def gated_linear(self, gate_up: Linear, x_TK: Tensor, activation: Activation) -> Tensor:
        if isinstance(gate_up, GpuLinear):
            made_TF = gate_up.gated(x_TK, activation)
            if made_TF is not None:
                return made_TF
        return self.gated(gate_up(x_TK), activation)

    def activated(self, x_TF: Tensor, activation: Activation) -> Tensor:
        assert activation != "swiglu_oai"
        return gated(x_TF, activation, dtype=self.io_dtype, alone=True, early=self._early)

    def _layer(self, heads: HeadShape, pool: KvPool) -> Tensor:
        """The layer's part of the pool; making it would cost as much as a launch."""
        if pool is not self._pool:
            self._pool, self._layers = pool, {}
        found = self._layers.get(heads.layer)
        if found is None:
            found = self._layers[heads.layer] = pool.tensor[:, heads.layer]
        return found

    def _stack(self, part: Tensor | None, num_experts: int) -> Tensor | None:
        if part is None:
            return None
        return part.new_empty(num_experts, *part.shape, dtype=self.io_dtype)
