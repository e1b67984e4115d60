"""The Triton kernels as `engine.ops.contract.Ops`: for GPUs, and under Triton's interpreter for
tests.

Linears are torch's (cuBLAS); the residual is float32. Every call only enqueues work: it reads
nothing back, so that a CUDA graph can hold a whole forward. Rows that only pad a batch are
harmless: slot -1 stores nothing, a sequence without tokens computes nothing.
"""

# Shapes: T tokens, K features in, N features out, F features of an MLP, D head dim, E experts.

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import Activation, ExpertWeights, HeadShape, Norm
from engine.ops.inputs import ForwardInputs
from engine.ops.torch_ops import TorchLinear
from engine.ops.triton.attention import attention
from engine.ops.triton.experts import GroupedExperts
from engine.ops.triton.gated import gated
from engine.ops.triton.norm import normed
from engine.ops.triton.rope_store import rope_store


class TritonOps:
    """See `engine.ops.contract.Ops`."""

    name = "triton"

    def __init__(self, *, io_dtype: torch.dtype) -> None:
        self.io_dtype = io_dtype

    def linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> TorchLinear:
        return TorchLinear.of_dtype(weight_NK, bias_N, self.io_dtype)

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
        )

    def norm(
        self, x_TK: Tensor, delta_TK: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0
    ) -> Tensor:
        return normed(x_TK, delta_TK, norm, delta_scale=delta_scale, dtype=self.io_dtype)

    def post_norm(self, y_TK: Tensor, norm: Norm) -> Tensor:
        return normed(y_TK, None, norm, dtype=self.io_dtype)

    def rotate_and_store(
        self, qkv: Tensor, rotations_T2D: Tensor | None, heads: HeadShape, pool: KvPool,
        inputs: ForwardInputs,
    ) -> None:  # fmt: skip
        layer_pool, slots_T = pool.tensor[:, heads.layer], inputs.slots_GT[heads.group]
        rope_store(qkv, rotations_T2D, heads, layer_pool, slots_T)

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        q_THD = qkv.view(len(qkv), -1, heads.head_dim)[:, : heads.num_heads]
        return attention(q_THD, pool.tensor[:, heads.layer], inputs, heads)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return gated(gate_up, activation, dtype=self.io_dtype)

    def activated(self, x_TF: Tensor, activation: Activation) -> Tensor:
        assert activation != "swiglu_oai"
        return gated(x_TF, activation, dtype=self.io_dtype, alone=True)

    def _stack(self, part: Tensor | None, num_experts: int) -> Tensor | None:
        if part is None:
            return None
        return part.new_empty(num_experts, *part.shape, dtype=self.io_dtype)
