"""The steps a model is made of.

Three compute them: the C kernels for CPUs (`engine.ops.cpu.ops`), the Triton kernels for GPUs
(`engine.ops.triton.ops`) and their torch twins (`engine.ops.torch_ops`), which are the oracle in
tests and serve where nothing can be compiled. The residual is float32 everywhere; `io_dtype` is
what flows into and out of the linears.
"""

# Shapes: T tokens, K features in, N features out, F features of an MLP, H query heads, G KV
# heads, D head dim, E experts, J experts of a token.

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.inputs import ForwardInputs


class Linear(Protocol):
    def __call__(self, x_TK: Tensor) -> Tensor:
        """y_TN, in the ops' io_dtype."""
        ...


class LogitsHead(Protocol):
    def __call__(self, x_RK: Tensor, /, out: Tensor | None = None) -> Tensor:
        """float32 [R, N], in memory that the caller may change; written to `out` if one is
        given."""
        ...


Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
"""How gate and up become one: `silu(gate) * up`, `gelu_tanh(gate) * up`, or GPT-OSS's clamped
`(up + 1) * gate * sigmoid(1.702 gate)` with gate at most 7 and up within -7 and 7."""
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """An RMS norm (Zhang, Sennrich 2019), or a layer norm (Ba et al. 2016)."""

    weight_K: Tensor  # float32
    eps: float
    centred: bool = False
    """A layer norm: a row loses its mean first."""
    bias_K: Tensor | None = None  # float32


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """How one layer splits its qkv, what it does to the heads, and where their KV lies."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Of q . k; mostly head_dim ** -0.5."""
    layer: int
    """Place of this layer in a block of its KV group."""
    group: int = 0
    """Which of a sequence's block tables (`engine.kvcache.windows`)."""
    window: int | None = None
    """Last tokens that a token sees, itself included; None: all."""
    softcap: float | None = None
    """Scores become `softcap * tanh(score / softcap)`, before the mask."""
    norm_eps: float = 1e-6
    q_norm: Tensor | None = None
    """float32: [D] norms each head alone, [H D] all heads as one row."""
    k_norm: Tensor | None = None
    """[D] or [G D]."""
    centred_norms: bool = False
    """Layer norms of each head alone, a weight for each: [H D] and [G D]."""
    sinks_H: Tensor | None = None
    """float32: a score per head that takes part in the softmax and brings no value (GPT-OSS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """One expert of a mixture, as `linear` takes its parts: gate rows, then up rows."""

    gate_up_NK: Tensor  # N = 2 F
    gate_up_bias_N: Tensor | None
    down_KF: Tensor
    down_bias_K: Tensor | None


class Experts(Protocol):
    def __call__(self, x_TK: Tensor, ids_TJ: Tensor, weights_TJ: Tensor) -> Tensor:
        """Sum over j of weight * expert(x), [T, K] in the ops' io_dtype. `ids_TJ` int64, no
        expert twice in a row; `weights_TJ` float32."""
        ...


class Ops(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def io_dtype(self) -> torch.dtype: ...

    def linear(
        self, weight_NK: Tensor, bias_N: Tensor | None, *, added: bool = False, gated: bool = False
    ) -> Linear:
        """A linear with its weights laid out as this machine likes them; may take the tensor.
        `added`: nobody but `norm` reads its answer, as a delta, and that may be in parts then.
        `gated`: `gated_linear` calls it; rows of the gate, then those of up."""
        ...

    def float32_linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> Linear:
        """In float32 whatever the io_dtype: a router that rounds chooses other experts."""
        ...

    def head(self, weight_NK: Tensor, bias_N: Tensor | None) -> LogitsHead:
        """The linear that answers logits."""
        ...

    def experts(
        self, weights: Iterable[ExpertWeights], *, num_experts: int, activation: Activation
    ) -> Experts:
        """All experts of a layer; takes one at a time, so that one is in memory twice at most."""
        ...

    def norm(
        self, x_TK: Tensor, delta: Tensor | None, norm: Norm | None, *, delta_scale: float = 1.0
    ) -> Tensor:
        """Adds `delta_scale * delta` to the residual `x` in place; the norm of the sum, or without
        one the sum, in io_dtype. `delta` is [T, K], or what an `added` linear of these ops
        answers."""
        ...

    def post_norm(self, y_TK: Tensor, norm: Norm) -> Tensor:
        """The norm of what an attention or an MLP answers, in io_dtype."""
        ...

    def rotate_and_store(
        self, qkv: Tensor, rotations_T2D: Tensor | None, heads: HeadShape, pool: KvPool,
        inputs: ForwardInputs,
    ) -> None:  # fmt: skip
        """Norms (if any) and rotates q in place in qkv[T, (H + 2 G) D]; k and v to the pool.

        `rotations_T2D` float32 [T, 2, R / 2] turns the first R dims of a head, dim r with dim
        r + R / 2, and leaves the others; None turns none.
        """
        ...

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        """[T, H D]: each token over its sequence's KV up to itself."""
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[T, F] of [T, 2 F]: the first half is the gate."""
        ...

    def gated_linear(self, gate_up: Linear, x_TK: Tensor, activation: Activation) -> Tensor:
        """`gated` of what the linear answers, perhaps in one step."""
        ...

    def activated(self, x_TF: Tensor, activation: Activation) -> Tensor:
        """[T, F]: as a gate, of ones. Not "swiglu_oai"."""
        ...
