"""A decoder built from a family's table, and its forward over the paged pool.

`load_model` is called once by a worker, `Model.forward` by `engine.torch_runner` every step. One
process, one device, not thread-safe.
"""

# Shapes: T tokens, R rows whose logits are asked for, K hidden size, V vocabulary, N features
# out, D head dim.

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import families
from engine.config import ModelConfig, read_config
from engine.inputs import ForwardInputs
from engine.kvpool import KvPool
from engine.ops import HeadShape, Linear, Ops, choose_ops
from engine.rope import frequencies, rotations
from engine.weights import Checkpoint
from protocol.errors import CheckpointError

Dtype = Literal["float32", "bfloat16"]
Progress = Callable[[int, int], None]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    attention_norm_K: Tensor  # float32, as all norms
    qkv: Linear
    heads: HeadShape
    output: Linear
    mlp_norm_K: Tensor
    gate_up: Linear
    down: Linear


class Model:
    """Weights and how to run them."""

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        *,
        embedding_VK: Tensor,
        layers: tuple[Layer, ...],
        final_norm_K: Tensor,
        head: Linear,
    ) -> None:
        self.config, self.ops = config, ops
        self._embedding_VK, self._layers = embedding_VK, layers
        self._final_norm_K, self._head = final_norm_K, head
        self._frequencies_D = frequencies(config.rope, head_dim=config.head_dim).to(
            embedding_VK.device
        )

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the pools this model works with: that of its weights."""
        return self._embedding_VK.dtype

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs, pool: KvPool) -> Tensor:
        """Writes the KV of every token to the pool; logits float32 [R, V] of `inputs.rows_R`."""
        ops, eps = self.ops, self.config.norm_eps
        rotations_T2D = rotations(
            self._frequencies_D,
            inputs.positions_T,
            attention_factor=self.config.rope.attention_factor,
        )
        x_TK = F.embedding(inputs.token_ids_T, self._embedding_VK).float()
        delta_TK: Tensor | None = None
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(ops.norm(x_TK, delta_TK, layer.attention_norm_K, eps))
            ops.rotate_and_store(qkv, rotations_T2D, layer.heads, pool, inputs)
            if index + 1 == len(self._layers) and not len(inputs.rows_R):
                break  # the KV is all that was asked for
            attended = ops.attend(qkv, layer.heads, pool, inputs)
            if index + 1 == len(self._layers):  # from here on only the rows asked for matter
                attended, x_TK = attended[inputs.rows_R], x_TK[inputs.rows_R]
            normed_TK = ops.norm(x_TK, layer.output(attended), layer.mlp_norm_K, eps)
            delta_TK = layer.down(ops.gated(layer.gate_up(normed_TK), "silu"))
        else:
            return self._head(ops.norm(x_TK, delta_TK, self._final_norm_K, eps)).float()
        return torch.empty(0, self.config.vocab_size)


def load_model(
    path: Path,
    *,
    dtype: Dtype,
    progress: Progress | None = None,
    native: bool | None = None,
    ops: Ops | None = None,
    device: torch.device | None = None,
    checkpoint: Checkpoint | None = None,
) -> Model:
    """The model in directory `path`, weights in `dtype` on `device` (None: the host).

    `progress` is called with (bytes done, bytes in all) after every tensor; `native` as in
    `engine.ops.choose_ops`, which chooses where no `ops` are given; `checkpoint` stands for the
    directory's tensors. Raises CheckpointError naming the file and the key or tensor.
    """
    config = read_config(path)
    if config.head_dim > MAX_HEAD_DIM:
        raise CheckpointError(f"{path / 'config.json'}: head_dim above {MAX_HEAD_DIM}")
    checkpoint = checkpoint or Checkpoint(path)
    ops = ops or choose_ops(dtype=DTYPES[dtype], native=native)
    loader = _Loader(config, checkpoint, ops, dtype, progress, device)
    loader.check_names()
    model = loader.model()
    revision = checkpoint.revision((path / "config.json").read_bytes())
    model.config = replace(config, revision=revision)
    return model


class _Loader:
    """Walks the tensors in the order they are used; holds one merged linear at a time."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        ops: Ops,
        dtype: Dtype,
        progress: Progress | None,
        device: torch.device | None,
    ) -> None:
        self._device = device
        self._config, self._checkpoint, self._ops = config, checkpoint, ops
        self._dtype, self._progress = DTYPES[dtype], progress
        self._done_bytes = 0
        self._shapes = tensor_shapes(config)
        self._total_bytes = sum(
            checkpoint.stored(name, shape=shape).num_bytes for name, shape in self._shapes.items()
        )

    def check_names(self) -> None:
        """Refuse a checkpoint with a tensor we would not use: it is not this architecture."""
        tied_head = {families.HEAD} if self._config.tied_embeddings else set()
        for name in self._checkpoint.tensors:
            if name in self._shapes or name in tied_head or name.endswith("rotary_emb.inv_freq"):
                continue
            file = self._checkpoint.tensors[name].file
            raise CheckpointError(
                f"{file}: tensor {name} has no place in a {self._config.family.model_type} model "
                "as config.json describes it"
            )

    def model(self) -> Model:
        config = self._config
        embedding_VK = self._read(families.EMBEDDING, self._dtype)
        layers = tuple(self._layer(index) for index in range(config.num_layers))
        final_norm_K = self._read(families.FINAL_NORM, torch.float32)
        head_VK = embedding_VK
        if not config.tied_embeddings:
            head_VK = self._read(families.HEAD, self._dtype)
        return Model(
            config,
            self._ops,
            embedding_VK=embedding_VK,
            layers=layers,
            final_norm_K=final_norm_K,
            head=self._ops.linear(head_VK, None),
        )

    def _layer(self, index: int) -> Layer:
        config, prefix = self._config, families.LAYER_PREFIX.format(layer=index)
        linears = {merged.name: self._linear(prefix, merged) for merged in families.LAYER_LINEARS}
        norms = families.LAYER_NORMS | (families.QK_NORMS if config.family.qk_norm else {})
        weights = {
            ours: self._read(f"{prefix}{theirs}.weight", torch.float32)
            for ours, theirs in norms.items()
        }
        group, place = next(
            (number, group.layers.index(index))
            for number, group in enumerate(config.kv_groups)
            if index in group.layers
        )
        return Layer(
            attention_norm_K=weights["attention_norm"],
            qkv=linears["qkv"],
            heads=HeadShape(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                norm_eps=config.norm_eps,
                window=config.windows[index],
                scale=config.head_dim**-0.5,
                group=group,
                layer=place,
                q_norm=weights.get("q_norm"),
                k_norm=weights.get("k_norm"),
            ),
            output=linears["output"],
            mlp_norm_K=weights["mlp_norm"],
            gate_up=linears["gate_up"],
            down=linears["down"],
        )

    def _linear(self, prefix: str, merged: families.Merged) -> Linear:
        names = [f"{prefix}{source}" for source in merged.sources]
        weight_NK = torch.cat([self._read(f"{name}.weight", self._dtype) for name in names])
        biases = [f"{name}.bias" for name in names if f"{name}.bias" in self._shapes]
        bias_N = torch.cat([self._read(bias, torch.float32) for bias in biases]) if biases else None
        return self._ops.linear(weight_NK, bias_N)

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self._checkpoint.read(name, shape=self._shapes[name], dtype=dtype)
        self._done_bytes += self._checkpoint.tensors[name].num_bytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)
        return tensor.to(self._device) if self._device is not None else tensor


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the checkpoint must hold, by name."""
    hidden, mlp = config.hidden_size, config.mlp_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (heads, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv_heads, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv_heads, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, heads, config.output_bias),
        "mlp.gate_proj": (mlp, hidden, config.mlp_bias),
        "mlp.up_proj": (mlp, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, mlp, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {families.EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        prefix = families.LAYER_PREFIX.format(layer=index)
        for name, (num_out, num_in, bias) in linears.items():
            shapes[f"{prefix}{name}.weight"] = (num_out, num_in)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (num_out,)
        for name in families.LAYER_NORMS.values():
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        if config.family.qk_norm:
            for name in families.QK_NORMS.values():
                shapes[f"{prefix}{name}.weight"] = (config.head_dim,)
    shapes[families.FINAL_NORM] = (hidden,)
    if not config.tied_embeddings:
        shapes[families.HEAD] = (config.vocab_size, hidden)
    return shapes
