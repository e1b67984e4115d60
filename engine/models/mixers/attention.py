"""Attention over the paged pool: softmax over keys, with as many KV heads as its heads say."""

# Shapes: T tokens, R rows whose answer is asked for, K hidden size.

from dataclasses import dataclass

from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.models.parts import Turns
from engine.ops.contract import HeadShape, Linear, Ops
from engine.ops.inputs import ForwardInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Implements `engine.models.parts.Mixer`."""

    ops: Ops
    qkv: Linear
    heads: HeadShape
    rope: int | None
    """Which of the model's ropes; None: its heads do not turn."""
    output: Linear

    def __call__(
        self, x_TK: Tensor, inputs: ForwardInputs, pool: KvPool, turns: Turns,
        rows_R: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        qkv = self.qkv(x_TK)
        if turns.growth_T1 is not None:
            qkv[:, : self.heads.num_heads * self.heads.head_dim] *= turns.growth_T1
        rotations = None if self.rope is None else turns.rotations[self.rope]
        self.ops.rotate_and_store(qkv, rotations, self.heads, pool, inputs)
        if rows_R is not None and not len(rows_R):
            return None
        attended = self.ops.attend(qkv, self.heads, pool, inputs)
        return self.output(attended if rows_R is None else attended[rows_R])
