"""Makes a model's parts of a checkpoint, one tensor at a time.

Beside what the model keeps, the host holds no more than the linear being made and one tensor it is
merged of, or its bias; of a mixture, the tensors of one expert. Each goes to the device as it is
read.
"""

# Shapes: V vocabulary, K hidden size, N features out.

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.checkpoint.experts import read_experts
from engine.checkpoint.safetensors import Checkpoint
from engine.checkpoint.tensor_names import (
    QUANTISED,
    Naming,
    Stored,
    find_naming,
    is_not_text,
    mixture_block,
    stored_down,
    stored_gate_up,
    stored_output,
    stored_qkv,
    tensor_shapes,
)
from engine.models.config import ModelConfig
from engine.models.mixers.attention import Attention
from engine.models.parts import Layer, Mixture, Mlp, Parts, Shared
from engine.ops.contract import HeadShape, Linear, Ops
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
    ) -> None:
        """Raises CheckpointError for a tensor that is missing, misshapen or without a place."""
        self._config, self._checkpoint, self._ops = config, checkpoint, ops
        self._dtype, self._device, self._progress = dtype, device, progress
        self._naming = find_naming(config, checkpoint.tensors)
        self._shapes = tensor_shapes(config, self._naming)
        self._done_bytes = 0
        self._total_bytes = sum(
            checkpoint.stored(name, shape=shape, quantised=name.endswith(QUANTISED)).num_bytes
            for name, shape in self._shapes.items()
        )
        self._check_names()

    def _check_names(self) -> None:
        """Refuse a checkpoint with a tensor we would not use: it is not this architecture."""
        tied_head = {self._naming.head} if self._config.tied_embeddings else set()
        text_only = self._naming.body == Naming().body
        for name in self._checkpoint.tensors:
            if name in self._shapes or name in tied_head or name.endswith("rotary_emb.inv_freq"):
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
                qkv=self._linear(stored_qkv(config, prefix)),
                heads=self._heads(index, prefix),
                rope=config.ropes.index(spec.rope),
                output=self._linear((stored_output(config, prefix),)),
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
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
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
            gate_up=self._linear(stored_gate_up(config, prefix, size)),
            down=self._linear((stored_down(config, prefix, size),)),
        )

    def _mixture(self, prefix: str) -> Mixture:
        config, mixture, form = self._config, self._config.mixture, self._naming.experts
        assert mixture is not None
        block = prefix + mixture_block(mixture, form)
        return Mixture(
            router=self._float32_linear(f"{block}{mixture.rule.router}"),
            experts=self._ops.experts(
                read_experts(self._read, mixture, prefix, form, self._dtype),
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
        bias_N = self._read(bias, torch.float32) if bias in self._shapes else None
        if self._ops.io_dtype == torch.float32:
            return self._ops.linear(weight_NK, bias_N)
        return TorchLinear(weight_NK, bias_N)

    def _linear(self, parts: Sequence[Stored]) -> Linear:
        weight_NK = self._stacked([part.weight for part in parts], self._dtype)
        biases = [part.bias_name for part in parts if part.bias]
        bias_N = self._stacked(biases, torch.float32) if biases else None
        return self._ops.linear(weight_NK, bias_N)

    def _stacked(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        """The tensors of these names as one, along their first dim."""
        if len(names) == 1:
            return self._read(names[0], dtype)
        shapes = [self._shapes[name] for name in names]
        rows = [shape[0] for shape in shapes]
        stacked = torch.empty(sum(rows), *shapes[0][1:], dtype=dtype, device=self._device)
        for name, place in zip(names, torch.split(stacked, rows), strict=True):
            place.copy_(self._read(name, dtype))
        return stacked

    def _optional_norm(self, prefix: str, name: str | None) -> Tensor | None:
        return None if name is None else self._norm(f"{prefix}{name}.weight")

    def _norm(self, name: str) -> Tensor:
        weight_K = self._read(name, torch.float32)
        return weight_K + 1 if self._config.family.norms.plus_one else weight_K

    def _read(self, name: str, dtype: torch.dtype, row: int | None = None) -> Tensor:
        shape = self._shapes[name]
        tensor = self._checkpoint.read(name, shape=shape, dtype=dtype, row=row)
        num_bytes = self._checkpoint.tensors[name].num_bytes
        self._done_bytes += num_bytes if row is None else num_bytes // shape[0]
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)
        return tensor.to(self._device)
