"""Makes a model's parts of a checkpoint, one tensor at a time.

Beside what the model keeps, the host holds no more than the linear being made and one tensor it is
merged of, or its bias; of a mixture, the tensors of one expert.
"""

# Shapes: V vocabulary, K hidden size, N features out, F features of an expert.

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from engine.checkpoint.parameters import LinearSpec
from engine.checkpoint.reader import Progress, TensorReader
from engine.checkpoint.safetensors import Checkpoint
from engine.checkpoint.shard import WHOLE, Cut, Shard
from engine.checkpoint.tensor_names import (
    attention_linears,
    expert_linears,
    head_norm,
    head_pairs,
    mixture_linears,
    mlp_linears,
)
from engine.models.config import ModelConfig
from engine.models.families.family import MixtureRule
from engine.models.layer_spec import MixtureSpec
from engine.models.mixers.attention import Attention
from engine.models.parts import Layer, Mixture, Mlp, Parts, Shared, UngatedMlp
from engine.ops.contract import ExpertWeights, HeadShape, Linear, Norm, Ops


class Loader:
    """Walks the tensors in the order they are used; holds one merged linear at a time."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        ops: Ops,
        *,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None,
        shard: Shard = WHOLE,
    ) -> None:
        """Raises CheckpointError as `TensorReader`."""
        self._config, self._ops, self._dtype, self._shard = config, ops, dtype, shard
        reader = TensorReader(config, checkpoint, device=device, progress=progress, shard=shard)
        self._reader, self._read, self._naming = reader, reader.read, reader.naming

    def parts(self) -> Parts:
        config = self._config
        embedding_VK = self._read(self._naming.embedding, self._dtype)
        layers = tuple(self._layer(index) for index in range(config.num_layers))
        final_norm = self._norm(self._naming.final_norm)
        head_VK, head_bias = self._reader.read_head(embedding_VK), self._naming.head_bias
        head_bias_V = self._read(head_bias, torch.float32) if config.head_bias else None
        scale = config.embedding_scale
        if config.family.embedding_sqrt:
            scale = torch.tensor(scale, dtype=self._dtype).item()
        return Parts(
            embedding_VK=embedding_VK,
            embedding_scale=scale,
            layers=layers,
            final_norm=final_norm,
            head=self._ops.head(head_VK, head_bias_V),
        )

    def _layer(self, index: int) -> Layer:
        config, prefix = self._config, self._naming.layer(index)
        spec, family, norms = config.layers[index], config.family, config.norms
        *qkv, output = attention_linears(config, prefix)
        parallel = config.parallel
        return Layer(
            norm=self._optional_norm(prefix, norms.before_attention),
            mixer=Attention(
                ops=self._ops,
                qkv=self._linear(*qkv),
                heads=self._heads(index, prefix),
                rope=None if spec.rope is None else config.ropes.index(spec.rope),
                output=self._linear(output, added=not parallel and norms.after_attention is None),
            ),
            after_mixer=self._optional_norm(prefix, norms.after_attention),
            mlp_norm=self._optional_norm(prefix, norms.before_mlp),
            mlp=self._mixture(prefix)
            if spec.sparse
            else self._dense(mlp_linears(config, family.mlp, prefix, config.mlp_size)),
            after_mlp=self._optional_norm(prefix, norms.after_mlp),
            parallel=parallel,
        )

    def _heads(self, index: int, prefix: str) -> HeadShape:
        config, family = self._config, self._config.family
        group, place = next(
            (number, group.layers.index(index))
            for number, group in enumerate(config.kv_groups)
            if index in group.layers
        )
        attention = f"{prefix}self_attn."
        return HeadShape(
            num_heads=self._shard.share_of(config.num_heads)[1],
            num_kv_heads=self._shard.share_of(config.num_kv_heads)[1],
            head_dim=config.head_dim,
            scale=config.attention_scale,
            group=group,
            layer=place,
            window=config.layers[index].window,
            softcap=config.attention_softcap,
            norm_eps=config.norm_eps,
            q_norm=self._head_norm(prefix, "q"),
            k_norm=self._head_norm(prefix, "k"),
            centred_norms=config.qk_norm in ("layer", "layers"),
            sinks_H=self._read(f"{attention}sinks", torch.float32) if family.sinks else None,
        )

    def _head_norm(self, prefix: str, which: Literal["q", "k"]) -> Tensor | None:
        names = list(head_norm(self._config, prefix, which))
        if not names:
            return None
        weights = [self._norm_weight(name) for name in names]
        weight = weights[0]
        if self._config.qk_norm == "layers":
            weight = Cut(axis=0).part_of(torch.stack(weights), self._shard)
        pairs = head_pairs(self._config)
        return weight.flatten() if pairs is None else pairs.as_ours(weight.flatten())

    def _dense(self, linears: Sequence[LinearSpec]) -> Mlp | UngatedMlp:
        added = self._config.norms.after_mlp is None
        if self._config.family.mlp.gated:
            return self._mlp(linears, added=added)
        up, down = linears
        return UngatedMlp(
            ops=self._ops,
            activation=self._config.activation,
            up=self._linear(up),
            down=self._linear(down, added=added),
        )

    def _mlp(self, linears: Sequence[LinearSpec], *, added: bool = False) -> Mlp:
        """`added`: its answer goes to the residual as it is."""
        *gate_up, down = linears
        return Mlp(
            ops=self._ops,
            activation=self._config.activation,
            gate_up=self._linear(*gate_up, gated=True),
            down=self._linear(down, added=added),
        )

    def _mixture(self, prefix: str) -> Mixture:
        config, mixture = self._config, self._config.mixture
        assert mixture is not None
        router, *shared = mixture_linears(config, mixture, prefix, self._naming.experts)
        return Mixture(
            router=self._float32_linear(router),
            experts=self._ops.experts(
                self._experts(mixture, prefix),
                num_experts=mixture.num_experts,
                activation=config.activation,
            ),
            per_token=mixture.per_token,
            softmax=mixture.rule.softmax,
            renormalise=mixture.renormalise,
            jitter=mixture.jitter,
            shared=self._shared(shared, mixture.rule) if shared else None,
        )

    def _shared(self, linears: Sequence[LinearSpec], rule: MixtureRule) -> Shared:
        if rule.shared is None or rule.shared.gate is None:
            return Shared(mlp=self._mlp(linears), gate=None)
        *mlp, gate = linears
        return Shared(mlp=self._mlp(mlp), gate=self._float32_linear(gate))

    def _experts(self, mixture: MixtureSpec, prefix: str) -> Iterator[ExpertWeights]:
        """Every expert of a layer, in order."""
        hidden, form = self._config.hidden_size, self._naming.experts
        for number, linears in enumerate(expert_linears(hidden, mixture, prefix, form)):
            # Made elsewhere, so that nothing is kept while this waits.
            yield self._expert(linears, number, interleaved=mixture.rule.interleaved)

    def _expert(
        self, linears: Sequence[LinearSpec], number: int, *, interleaved: bool
    ) -> ExpertWeights:
        """`interleaved` where rows of gate and up take turns."""
        weights = [linear.load_weight(self._read, self._dtype, number) for linear in linears]
        *gate_up, down_KF = weights
        gate_up_NK = torch.cat(gate_up) if len(gate_up) > 1 else gate_up[0]
        gate_up_bias_N = linears[0].load_bias(self._read, number)
        down_bias_K = linears[-1].load_bias(self._read, number)
        if interleaved:
            gate_up_NK = _gate_then_up(gate_up_NK)
            gate_up_bias_N = None if gate_up_bias_N is None else _gate_then_up(gate_up_bias_N)
        return ExpertWeights(
            gate_up_NK=gate_up_NK.contiguous(),
            gate_up_bias_N=gate_up_bias_N,
            down_KF=down_KF.contiguous(),
            down_bias_K=down_bias_K,
        )

    def _float32_linear(self, linear: LinearSpec) -> Linear:
        weight_NK = linear.load_weight(self._read, torch.float32)
        return self._ops.float32_linear(weight_NK, linear.load_bias(self._read))

    def _linear(self, *parts: LinearSpec, added: bool = False, gated: bool = False) -> Linear:
        """The parts, merged along N; `added` and `gated` as `Ops.linear`."""
        rows = [part.cut.size_of(part.shape[0], self._shard) for part in parts]
        weights = (part.load_weight(self._read, self._dtype) for part in parts)
        loaded = (part.load_bias(self._read) for part in parts)
        biases = (bias_N for bias_N in loaded if bias_N is not None)
        bias_N = _merged(biases, rows) if parts[0].bias else None
        return self._ops.linear(_merged(weights, rows), bias_N, added=added, gated=gated)

    def _optional_norm(self, prefix: str, name: str | None) -> Norm | None:
        return None if name is None else self._norm(f"{prefix}{name}")

    def _norm(self, name: str) -> Norm:
        norms = self._config.norms
        return Norm(
            weight_K=self._norm_weight(f"{name}.weight"),
            eps=self._config.norm_eps,
            centred=norms.centred,
            bias_K=self._read(f"{name}.bias", torch.float32) if norms.bias else None,
        )

    def _norm_weight(self, name: str) -> Tensor:
        weight_K = self._read(name, torch.float32)
        return weight_K + 1 if self._config.family.norms.plus_one else weight_K


def _merged(loads: Iterator[Tensor], rows: list[int]) -> Tensor:
    """What is loaded as one tensor along the first dim, `rows` of each."""
    part = next(loads)
    if len(rows) == 1:
        return part
    merged = part.new_empty(sum(rows), *part.shape[1:])
    first, *others = torch.split(merged, rows)
    first.copy_(part)
    del part  # before the next is loaded
    for place in others:
        place.copy_(next(loads))
    return merged


def _gate_then_up(rows: Tensor) -> Tensor:
    """The even rows, then the odd ones."""
    return torch.cat((rows[0::2], rows[1::2]))
