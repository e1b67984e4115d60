"""Makes a model's parts of a checkpoint, one tensor at a time.

Beside what the model keeps, the host holds no more than the linear being made and one tensor it is
merged of, or its bias; of a mixture, the tensors of one expert. Each goes to the device as it is
read.
"""

# Shapes: V vocabulary, K hidden size, N features out, F features of an expert.

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from engine.checkpoint.parameters import LinearSpec, Read
from engine.checkpoint.safetensors import Checkpoint
from engine.checkpoint.shard import WHOLE, Shard
from engine.checkpoint.tensor_names import (
    Naming,
    attention_output,
    expert_linears,
    find_naming,
    gate_up_parts,
    is_not_text,
    mixture_block,
    mlp_down,
    qkv_parts,
    tensor_specs,
)
from engine.models.config import ModelConfig
from engine.models.mixers.attention import Attention
from engine.models.parts import Layer, Mixture, Mlp, Parts, Shared
from engine.ops.contract import ExpertWeights, HeadShape, Linear, Ops
from engine.ops.torch_ops import TorchLinear
from protocol.errors import CheckpointError

Progress = Callable[[int, int], None]


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
        """Each tensor's `shard` is loaded as its `Cut` says. Raises CheckpointError for a
        tensor that is missing, misshapen or without a place."""
        self._config, self._checkpoint, self._ops = config, checkpoint, ops
        self._dtype, self._device, self._progress = dtype, device, progress
        self._shard = shard
        self._naming = find_naming(config, checkpoint.tensors)
        self._specs = tensor_specs(config, self._naming)
        self._done_bytes = 0
        self._total_bytes = sum(
            checkpoint.stored(name, shape=spec.shape, quantised=spec.quantised).num_bytes
            for name, spec in self._specs.items()
        )
        self._check_names()

    def _check_names(self) -> None:
        """Refuse a checkpoint with a tensor we would not use: it is not this architecture."""
        tied_head = {self._naming.head} if self._config.tied_embeddings else set()
        text_only = self._naming.body == Naming().body
        for name in self._checkpoint.tensors:
            if name in self._specs or name in tied_head or name.endswith("rotary_emb.inv_freq"):
                continue
            if not text_only and is_not_text(name):
                continue
            file = self._checkpoint.tensors[name].file
            raise CheckpointError(
                f"{file}: tensor {name} has no place in a {self._config.family.model_type} model "
                "as config.json describes it"
            )

    def parts(self) -> Parts:
        config = self._config
        embedding_VK = self._read(self._naming.embedding, self._dtype)
        layers = tuple(self._layer(index) for index in range(config.num_layers))
        final_norm_K = self._norm(self._naming.final_norm)
        head_VK = embedding_VK
        if not config.tied_embeddings:
            head_VK = self._read(self._naming.head, self._dtype)
        scale = config.embedding_scale
        if config.family.embedding_sqrt:
            scale = torch.tensor(scale, dtype=self._dtype).item()
        return Parts(
            embedding_VK=embedding_VK,
            embedding_scale=scale,
            layers=layers,
            final_norm_K=final_norm_K,
            head=self._ops.linear(head_VK, None),
        )

    def _layer(self, index: int) -> Layer:
        config, prefix = self._config, self._naming.layer(index)
        spec, norms = config.layers[index], config.family.norms
        return Layer(
            norm_K=self._optional_norm(prefix, norms.before_attention),
            mixer=Attention(
                ops=self._ops,
                qkv=self._linear(qkv_parts(config, prefix)),
                heads=self._heads(index, prefix),
                rope=config.ropes.index(spec.rope),
                output=self._linear((attention_output(config, prefix),)),
            ),
            after_mixer_K=self._optional_norm(prefix, norms.after_attention),
            mlp_norm_K=self._optional_norm(prefix, norms.before_mlp),
            mlp=self._mixture(prefix)
            if spec.sparse
            else self._mlp(f"{prefix}mlp.", config.mlp_size),
            after_mlp_K=self._optional_norm(prefix, norms.after_mlp),
        )

    def _heads(self, index: int, prefix: str) -> HeadShape:
        config, family = self._config, self._config.family
        normed = family.qk_norm != "none"
        group, place = next(
            (number, group.layers.index(index))
            for number, group in enumerate(config.kv_groups)
            if index in group.layers
        )
        attention = f"{prefix}self_attn."
        return HeadShape(
            num_heads=self._share(config.num_heads),
            num_kv_heads=self._share(config.num_kv_heads),
            head_dim=config.head_dim,
            scale=config.attention_scale,
            group=group,
            layer=place,
            window=config.layers[index].window,
            softcap=config.attention_softcap,
            norm_eps=config.norm_eps,
            q_norm=self._norm(f"{attention}q_norm.weight") if normed else None,
            k_norm=self._norm(f"{attention}k_norm.weight") if normed else None,
            sinks_H=self._read(f"{attention}sinks", torch.float32) if family.sinks else None,
        )

    def _mlp(self, prefix: str, size: int) -> Mlp:
        config = self._config
        return Mlp(
            ops=self._ops,
            activation=config.activation,
            gate_up=self._linear(gate_up_parts(config, prefix, size)),
            down=self._linear((mlp_down(config, prefix, size),)),
        )

    def _mixture(self, prefix: str) -> Mixture:
        config, mixture, form = self._config, self._config.mixture, self._naming.experts
        assert mixture is not None
        block = prefix + mixture_block(mixture, form)
        return Mixture(
            router=self._float32_linear(f"{block}{mixture.rule.router}"),
            experts=self._ops.experts(
                read_experts(
                    self._read,
                    expert_linears(config.hidden_size, mixture, prefix, form),
                    self._dtype,
                    interleaved=mixture.rule.interleaved,
                ),
                num_experts=mixture.num_experts,
                activation=config.activation,
            ),
            per_token=mixture.per_token,
            softmax=mixture.rule.softmax,
            renormalise=mixture.renormalise,
            shared=self._shared(block, mixture.shared_size) if mixture.shared_size else None,
        )

    def _shared(self, block: str, size: int) -> Shared:
        return Shared(
            mlp=self._mlp(f"{block}shared_expert.", size),
            gate=self._float32_linear(f"{block}shared_expert_gate"),
        )

    def _float32_linear(self, name: str) -> Linear:
        """In float32 whatever the io_dtype: a rounded router chooses other experts. Our own
        kernel where it works in float32, since its rows do not depend on the batch."""
        weight_NK, bias = self._read(f"{name}.weight", torch.float32), f"{name}.bias"
        bias_N = self._read(bias, torch.float32) if bias in self._specs else None
        if self._ops.io_dtype == torch.float32:
            return self._ops.linear(weight_NK, bias_N)
        return TorchLinear(weight_NK, bias_N)

    def _linear(self, parts: Sequence[LinearSpec]) -> Linear:
        """The parts, merged along N."""
        weights = [partial(part.load_weight, self._read, self._dtype) for part in parts]
        biases = [partial(self._read, part.bias_name, torch.float32) for part in parts if part.bias]
        rows = [part.cut.size_of(part.shape[0], self._shard) for part in parts]
        return self._ops.linear(
            self._merged(weights, rows, self._dtype, parts[0].shape[1:]),
            self._merged(biases, rows, torch.float32) if biases else None,
        )

    def _merged(
        self,
        loads: Sequence[Callable[[], Tensor]],
        rows: Sequence[int],
        dtype: torch.dtype,
        columns: tuple[int, ...] = (),
    ) -> Tensor:
        """What is loaded as one tensor along the first dim, `rows` of each."""
        if len(loads) == 1:
            return loads[0]()
        merged = torch.empty(sum(rows), *columns, dtype=dtype, device=self._device)
        for load, place in zip(loads, torch.split(merged, list(rows)), strict=True):
            place.copy_(load())
        return merged

    def _optional_norm(self, prefix: str, name: str | None) -> Tensor | None:
        return None if name is None else self._norm(f"{prefix}{name}.weight")

    def _norm(self, name: str) -> Tensor:
        weight_K = self._read(name, torch.float32)
        return weight_K + 1 if self._config.family.norms.plus_one else weight_K

    def _read(self, name: str, dtype: torch.dtype, row: int | None = None) -> Tensor:
        spec = self._specs[name]
        whole = self._checkpoint.read(name, shape=spec.shape, dtype=dtype, row=row)
        num_bytes = self._checkpoint.tensors[name].num_bytes
        self._done_bytes += num_bytes if row is None else num_bytes // spec.shape[0]
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)
        return spec.cut.part_of(whole, self._shard).to(self._device)

    def _share(self, size: int) -> int:
        """Of so many heads."""
        return self._shard.share_of(size)[1]


def read_experts(
    read: Read, experts: Iterable[Sequence[LinearSpec]], dtype: torch.dtype, *, interleaved: bool
) -> Iterator[ExpertWeights]:
    """Every expert of a layer, in order, as `expert_linears` lists them;
    `interleaved` where rows of gate and up take turns."""
    for expert, linears in enumerate(experts):
        yield _expert(read, linears, dtype, expert, interleaved)  # keeps none while it waits


def _expert(
    read: Read, linears: Sequence[LinearSpec], dtype: torch.dtype, expert: int, interleaved: bool
) -> ExpertWeights:
    *gate_up, down = linears
    weights = [linear.load_weight(read, dtype, expert) for linear in gate_up]
    gate_up_NK = torch.cat(weights) if len(weights) > 1 else weights[0]
    down_KF = down.load_weight(read, dtype, expert)
    gate_up_bias_N, down_bias_K = gate_up[0].load_bias(read, expert), down.load_bias(read, expert)
    if interleaved:
        gate_up_NK = gate_then_up(gate_up_NK)
        gate_up_bias_N = None if gate_up_bias_N is None else gate_then_up(gate_up_bias_N)
    return ExpertWeights(
        gate_up_NK=gate_up_NK.contiguous(),
        gate_up_bias_N=gate_up_bias_N,
        down_KF=down_KF.contiguous(),
        down_bias_K=down_bias_K,
    )


def gate_then_up(rows: Tensor) -> Tensor:
    """The even rows, then the odd ones."""
    return torch.cat((rows[0::2], rows[1::2]))
