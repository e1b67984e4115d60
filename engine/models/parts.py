"""The parts of a decoder, ready to run."""

# Shapes: T tokens, R rows whose answer is asked for, K hidden size, V vocabulary, J experts of a
# token.
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.models.route import Softmax, route
from engine.ops.contract import Activation, Experts, Linear, LogitsHead, Norm, Ops
from engine.ops.inputs import ForwardInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    ops: Ops
    activation: Activation
    gate_up: Linear
    down: Linear

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self.down(self.ops.gated_linear(self.gate_up, x_TK, self.activation))


@dataclass(frozen=True, slots=True, kw_only=True)
class UngatedMlp:
    ops: Ops
    activation: Activation
    up: Linear
    down: Linear

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self.down(self.ops.activated(self.up(x_TK), self.activation))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The expert of all tokens, perhaps weighed by a sigmoid of its gate."""

    mlp: Mlp
    gate: Linear | None  # float32 to one feature

    def __call__(self, x_TK: Tensor) -> Tensor:
        y_TK = self.mlp(x_TK)
        return y_TK if self.gate is None else torch.sigmoid(self.gate(x_TK.float())) * y_TK


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture of experts in place of an MLP. The router works in float32."""

    router: Linear  # float32
    experts: Experts
    per_token: int
    softmax: Softmax
    renormalise: bool
    jitter: float
    shared: Shared | None

    def __call__(self, x_TK: Tensor) -> Tensor:
        ids_TJ, weights_TJ = route(
            self.router(x_TK.float()),
            per_token=self.per_token,
            softmax=self.softmax,
            renormalise=self.renormalise,
            jitter=self.jitter,
        )
        y_TK = self.experts(x_TK, ids_TJ, weights_TJ)
        return y_TK if self.shared is None else (y_TK + self.shared(x_TK)).to(x_TK.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What the positions of a step's tokens do to their heads."""

    rotations: tuple[Tensor, ...]
    """Of each of the model's ropes."""
    growth_T1: Tensor | None
    """Of the queries; float32."""


class Mixer(Protocol):
    """The half of a layer in which tokens see each other, as its MLP is the half in which they
    do not: attention today (`engine.models.mixers`), another kind is another class."""

    def __call__(
        self, x_TK: Tensor, inputs: ForwardInputs, pool: KvPool, turns: Turns,
        rows_R: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """[T, K] in io_dtype, or what only `Ops.norm` can read; what later tokens need of these is
        in the pool then. Of `rows_R` (None: all) alone an answer is asked for, [R, K], and None of
        none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer; a norm that is None is not there."""

    norm: Norm | None
    mixer: Mixer
    after_mixer: Norm | None
    mlp_norm: Norm | None
    mlp: Callable[[Tensor], Tensor]
    after_mlp: Norm | None
    parallel: bool
    """The MLP takes what the mixer takes, and neither the other's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All weights of a model, on one device."""

    embedding_VK: Tensor
    embedding_scale: float
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: LogitsHead
