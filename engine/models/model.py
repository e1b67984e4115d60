"""A decoder built from a family's table, and its forward over the paged pool.

One process, one device, not thread-safe. A forward never waits for the device and branches on
shapes only, so a CUDA graph can hold one (the torch twins of attention and experts excepted).
"""

# Shapes: T tokens, R rows whose logits are asked for, K hidden size, V vocabulary.

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.models.config import ModelConfig
from engine.models.parts import Parts, Turns
from engine.models.rope import Rope, frequencies, rotations, stretched
from engine.ops.contract import Norm, Ops
from engine.ops.inputs import ForwardInputs

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Model:
    """Weights and how to run them."""

    def __init__(self, config: ModelConfig, ops: Ops, parts: Parts) -> None:
        self.config, self.ops, self._parts = config, ops, parts
        self._ropes = [
            (rope, frequencies(rope, head_dim=config.head_dim).to(self.device))
            for rope in config.ropes
        ]

    @property
    def device(self) -> torch.device:
        return self._parts.embedding_VK.device

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the pools this model works with: that of its weights."""
        return self._parts.embedding_VK.dtype

    @property
    def takes_reaches(self) -> bool:
        """Whether its inputs need `reaches_T`."""
        return self.config.dynamic_after is not None

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs, pool: KvPool, out: Tensor | None = None) -> Tensor:
        """Writes the KV of every token to the pool; logits float32 [R, V] of `inputs.rows_R`, in
        `out` if one is given."""
        x_RK = self.hidden(inputs, pool)
        if x_RK is None:
            return torch.empty(0, self.config.vocab_size, device=self.device)
        return self.logits(x_RK, out)

    @torch.inference_mode()
    def hidden(self, inputs: ForwardInputs, pool: KvPool) -> Tensor | None:
        """Writes the KV of every token to the pool; [R, K] of `inputs.rows_R` after the last norm,
        in io_dtype; None: no row was asked for."""
        turns = self.turns(inputs)
        x_TK, layers = self._embedded(inputs.token_ids_T), self._parts.layers
        delta: Tensor | None = None
        for layer in layers:
            # From the last mixer on only the rows asked for matter.
            rows_R = inputs.rows_R if layer is layers[-1] else None
            normed_TK = self._normed(x_TK, delta, layer.norm)
            mixed = layer.mixer(normed_TK, inputs, pool, turns, rows_R)
            if mixed is None:  # the KV is all that was asked for
                return None
            x_TK = x_TK if rows_R is None else x_TK[rows_R]
            delta = self._after(mixed, layer.after_mixer)
            if layer.parallel:
                normed_TK = normed_TK if rows_R is None else normed_TK[rows_R]
                x_TK.add_(delta, alpha=self.config.residual_scale)
            else:
                normed_TK = self._normed(x_TK, delta, layer.mlp_norm)
            delta = self._after(layer.mlp(normed_TK), layer.after_mlp)
        return self._normed(x_TK, delta, self._parts.final_norm)

    def turns(self, inputs: ForwardInputs) -> Turns:
        """What the tokens' places do to the heads of every layer."""
        growth = self.config.query_growth
        return Turns(
            rotations=tuple(_rotations(rope, freq_R, inputs) for rope, freq_R in self._ropes),
            growth_T1=None if growth is None else growth.at(inputs.positions_T),
        )

    def _embedded(self, token_ids_T: Tensor) -> Tensor:
        x_TK = F.embedding(token_ids_T, self._parts.embedding_VK).float()
        scale = self._parts.embedding_scale
        return x_TK if scale == 1 else x_TK * scale

    def _normed(self, x_TK: Tensor, delta: Tensor | None, norm: Norm | None) -> Tensor:
        return self.ops.norm(x_TK, delta, norm, delta_scale=self.config.residual_scale)

    def _after(self, y_TK: Tensor, norm: Norm | None) -> Tensor:
        """What is added to the residual: the mixer's or the MLP's answer, perhaps normed."""
        return y_TK if norm is None else self.ops.post_norm(y_TK, norm)

    @torch.inference_mode()
    def logits(self, x_RK: Tensor, out: Tensor | None = None) -> Tensor:
        """float32 [R, V] of what `hidden` answers, or some rows of it; in `out` if one is given."""
        logits_RV, softcap = self._parts.head(x_RK, out), self.config.final_softcap
        if self.config.logits_divisor != 1:
            logits_RV.div_(self.config.logits_divisor)
        if softcap is not None:
            logits_RV.div_(softcap).tanh_().mul_(softcap)
        return logits_RV


def _rotations(rope: Rope, freq_R: Tensor, inputs: ForwardInputs) -> Tensor:
    if rope.kind == "dynamic":
        assert inputs.reaches_T is not None, "the model takes reaches"
        freq_R = stretched(rope, freq_R, inputs.reaches_T)
    return rotations(freq_R, inputs.positions_T, attention_factor=rope.attention_factor)
