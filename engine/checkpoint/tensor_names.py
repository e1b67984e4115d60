"""Which tensors a checkpoint of a model holds: their names and shapes, and how ranks share them.

Families differ in names (`engine.models.family`); one family's checkpoints differ in a `Naming`,
which is found by looking.
"""

# Shapes: K features in, N features out.

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from engine.checkpoint.quant.formats import FORMATS, FormatName
from engine.checkpoint.shard import Axis, Shard, TensorSpec
from engine.models.config import ModelConfig
from engine.models.family import ExpertForm
from engine.models.layer_spec import MixtureSpec
from protocol.errors import CheckpointError

Specs = dict[str, TensorSpec]
NOT_TEXT = ("vision_tower.", "multi_modal_projector.")
"""Parts of multimodal models that are not served; perhaps below `model.`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    body: str = "model."
    """Goes before the names of all but the head."""
    head: str = "lm_head.weight"
    experts: ExpertForm = "each"

    @property
    def embedding(self) -> str:
        return f"{self.body}embed_tokens.weight"

    @property
    def final_norm(self) -> str:
        return f"{self.body}norm.weight"

    def layer(self, index: int) -> str:
        return f"{self.body}layers.{index}."


_OTHER: Mapping[Axis | None, Axis | None] = {0: 1, 1: 0, None: None}
_BODIES = (
    Naming(),
    Naming(body="model.language_model."),
    Naming(body="language_model.model.", head="language_model.lm_head.weight"),
)


def find_naming(config: ModelConfig, names: Collection[str]) -> Naming:
    """The naming that these tensors follow; the default where none fits, for the errors."""
    body = next((one for one in _BODIES if one.embedding in names), _BODIES[0])
    if config.mixture is None:
        return body
    namings = [replace(body, experts=form) for form in config.mixture.rule.forms]
    fitting = (one for one in namings if not _marks(config, one).isdisjoint(names))
    return next(fitting, namings[0])


def _marks(config: ModelConfig, naming: Naming) -> set[str]:
    assert config.mixture is not None
    return {
        name
        for index, layer in enumerate(config.layers)
        if layer.sparse
        for name in _experts(config, config.mixture, naming.layer(index), naming.experts)
        if not name.endswith("_bias")  # stacked floats and blocks have the same
    }


def is_not_text(name: str) -> bool:
    return name.removeprefix("model.").startswith(NOT_TEXT)


class Read(Protocol):
    def __call__(self, name: str, dtype: torch.dtype, row: int | None = None) -> Tensor:
        """What a rank has of a tensor, on its device, or of one row of its first dim."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One linear of the checkpoint, weights [N, K] and perhaps a bias [N], and how it loads."""

    name: str
    shape: tuple[int, int]
    bias: bool = False
    axis: Axis | None = None
    """0: a rank makes some of the features; 1: a rank takes some, and their answers are summed."""
    sections: tuple[int, ...] = ()
    unit: int = 1
    """These two as `TensorSpec`."""
    format: FormatName | None = None
    """None: floats."""
    num_stacked: int | None = None
    """So many linears lie in each tensor, one after the other."""
    transposed: bool = False
    """Floats lie as [K, N]."""

    @property
    def bias_name(self) -> str:
        return f"{self.name}.bias" if self.num_stacked is None else f"{self.name}_bias"

    @property
    def weights(self) -> Specs:
        """One tensor of floats, or those of the format."""
        end = ".weight" if self.num_stacked is None else ""
        shapes: Mapping[str, tuple[int, ...]] = {end: self.shape}
        axis = self.axis
        if self.format is not None:
            shapes = FORMATS[self.format].tensors(*self.shape)
        elif self.transposed:
            shapes, axis = {end: self.shape[::-1]}, _OTHER[axis]
        share = TensorSpec(
            shape=(), axis=axis, sections=self.sections, unit=self.unit,
            quantised=self.format is not None,
        )  # fmt: skip
        return {f"{self.name}{end}": self._stack(share, shape) for end, shape in shapes.items()}

    @property
    def tensors(self) -> Specs:
        share = TensorSpec(shape=(), once=self.axis == 1)
        if self.axis == 0:
            share = TensorSpec(shape=(), axis=0, sections=self.sections, unit=self.unit)
        bias = {self.bias_name: self._stack(share, self.shape[:1])} if self.bias else {}
        return self.weights | bias

    def num_rows(self, shard: Shard) -> int:
        """Features that a rank makes."""
        if self.axis != 0:
            return self.shape[0]
        sections = self.sections or self.shape[:1]
        return sum(shard.share_of(size, unit=self.unit)[1] for size in sections)

    def load_weight(self, read: Read, dtype: torch.dtype, number: int = 0) -> Tensor:
        """[N, K] in `dtype` of what a rank has, of linear `number` where they are stacked."""
        row = None if self.num_stacked is None else number
        if self.format is not None:
            tensors = [read(name, torch.uint8, row) for name in self.weights]
            return FORMATS[self.format].dequantise(*tensors).to(dtype)
        (name,) = self.weights
        return read(name, dtype, row).T if self.transposed else read(name, dtype, row)

    def load_bias(self, read: Read, number: int = 0) -> Tensor | None:
        """float32 [N], as `load_weight`."""
        row = None if self.num_stacked is None else number
        return read(self.bias_name, torch.float32, row) if self.bias else None

    def _stack(self, share: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        stack = () if self.num_stacked is None else (self.num_stacked,)
        return replace(share, shape=(*stack, *shape))


def qkv_parts(config: ModelConfig, prefix: str) -> tuple[LinearSpec, ...]:
    """What the linear that makes q, k and v is merged of."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes: dict[str, tuple[int, ...]] = {
        "q_proj": (heads,),
        "k_proj": (kv_heads,),
        "v_proj": (kv_heads,),
    }
    if config.family.fused:
        sizes = {"qkv_proj": (heads, kv_heads, kv_heads)}
    return _parts(config, f"{prefix}self_attn.", sizes, config.qkv_bias, unit=config.head_dim)


def attention_output(config: ModelConfig, prefix: str) -> LinearSpec:
    return LinearSpec(
        name=f"{prefix}self_attn.o_proj",
        shape=(config.hidden_size, config.num_heads * config.head_dim),
        bias=config.output_bias,
        axis=1,
        unit=config.head_dim,
    )


def gate_up_parts(config: ModelConfig, prefix: str, size: int) -> tuple[LinearSpec, ...]:
    """Of an MLP of `size` features whose tensors start with `prefix`."""
    sizes: dict[str, tuple[int, ...]] = {"gate_proj": (size,), "up_proj": (size,)}
    if config.family.fused:
        sizes = {"gate_up_proj": (size, size)}
    return _parts(config, prefix, sizes, config.mlp_bias)


def mlp_down(config: ModelConfig, prefix: str, size: int) -> LinearSpec:
    shape = (config.hidden_size, size)
    return LinearSpec(name=f"{prefix}down_proj", shape=shape, bias=config.mlp_bias, axis=1)


def _parts(
    config: ModelConfig,
    prefix: str,
    sizes: Mapping[str, tuple[int, ...]],
    bias: bool,
    unit: int = 1,
) -> tuple[LinearSpec, ...]:
    """Linears over the hidden state, each of sections of these sizes."""
    return tuple(
        LinearSpec(
            name=f"{prefix}{name}", shape=(sum(sections), config.hidden_size), bias=bias, axis=0,
            sections=sections, unit=unit,
        )
        for name, sections in sizes.items()
    )  # fmt: skip


def mixture_block(mixture: MixtureSpec, form: ExpertForm) -> str:
    """Where a sparse layer's router and experts are; transformers 5's own form renames it."""
    return mixture.rule.block if form == "each" else "mlp."


def tensor_specs(config: ModelConfig, naming: Naming) -> Specs:
    """Every tensor it must hold, by name. CheckpointError for sizes that its form cannot hold."""
    vocabulary = TensorSpec(shape=(config.vocab_size, config.hidden_size))
    if naming.experts == "mxfp4" and config.mixture is not None:
        sizes = {
            "hidden_size": config.hidden_size,
            config.mixture.rule.size_key: config.mixture.size,
        }
        _check_blocks(sizes, block=FORMATS["mxfp4"].block)
    specs: Specs = {naming.embedding: vocabulary}
    for index, layer in enumerate(config.layers):
        prefix = naming.layer(index)
        for linear in (*qkv_parts(config, prefix), attention_output(config, prefix)):
            specs |= linear.tensors
        if layer.sparse:
            assert config.mixture is not None
            specs |= _router(config, config.mixture, prefix, naming.experts)
            specs |= _experts(config, config.mixture, prefix, naming.experts)
        else:
            specs |= _mlp(config, f"{prefix}mlp.", config.mlp_size)
        specs |= dict(_norms(config, prefix))
    specs[naming.final_norm] = TensorSpec(shape=(config.hidden_size,))
    if not config.tied_embeddings:
        specs[naming.head] = vocabulary
    return specs


def _check_blocks(sizes: Mapping[str, int], *, block: int) -> None:
    for key, size in sizes.items():
        if size % block:
            raise CheckpointError(
                f"config.json: {key} = {size} must be a multiple of {block} for MXFP4 experts"
            )


def _mlp(config: ModelConfig, prefix: str, size: int) -> Specs:
    specs: Specs = {}
    for linear in (*gate_up_parts(config, prefix, size), mlp_down(config, prefix, size)):
        specs |= linear.tensors
    return specs


def _norms(config: ModelConfig, prefix: str) -> Iterator[tuple[str, TensorSpec]]:
    family, norms = config.family, config.family.norms
    for name in (norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp):
        if name is not None:
            yield f"{prefix}{name}.weight", TensorSpec(shape=(config.hidden_size,))
    if family.qk_norm != "none":
        dim = config.head_dim
        for name, heads in (("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)):
            spec = TensorSpec(shape=(dim,))
            if family.qk_norm == "full":
                spec = TensorSpec(shape=(dim * heads,), axis=0, unit=dim)
            yield f"{prefix}self_attn.{name}.weight", spec
    if family.sinks:
        yield f"{prefix}self_attn.sinks", TensorSpec(shape=(config.num_heads,), axis=0)


def _router(config: ModelConfig, mixture: MixtureSpec, prefix: str, form: ExpertForm) -> Specs:
    """Every rank has the whole router."""
    block, rule = prefix + mixture_block(mixture, form), mixture.rule
    shape = (mixture.num_experts, config.hidden_size)
    specs = LinearSpec(name=f"{block}{rule.router}", shape=shape, bias=rule.biased).tensors
    if mixture.shared_size is not None:
        specs |= _mlp(config, f"{block}shared_expert.", mixture.shared_size)
        specs[f"{block}shared_expert_gate.weight"] = TensorSpec(shape=(1, config.hidden_size))
    return specs


def _experts(config: ModelConfig, mixture: MixtureSpec, prefix: str, form: ExpertForm) -> Specs:
    specs: Specs = {}
    for linears in expert_linears(config.hidden_size, mixture, prefix, form):
        for linear in linears:
            specs |= linear.tensors
    return specs


def expert_linears(
    hidden: int, mixture: MixtureSpec, prefix: str, form: ExpertForm
) -> list[list[LinearSpec]]:
    """Of each expert of the layer whose tensors start with `prefix`: gate, up and down, or the
    stacks of gate with up and of down. Ranks share every expert, as they share an MLP."""
    rule, size = mixture.rule, mixture.size
    experts = f"{prefix}{mixture_block(mixture, form)}experts."
    if form == "each":
        up = LinearSpec(name=rule.up, shape=(size, hidden), axis=0)
        down = LinearSpec(name=rule.down, shape=(hidden, size), axis=1)
        return [
            [
                replace(one, name=f"{experts}{expert}.{one.name}")
                for one in (replace(up, name=rule.gate), up, down)
            ]
            for expert in range(mixture.num_experts)
        ]
    gate_up = LinearSpec(
        name=f"{experts}gate_up_proj", shape=(2 * size, hidden), bias=rule.biased, axis=0,
        sections=() if rule.interleaved else (size, size), unit=2 if rule.interleaved else 1,
        format="mxfp4" if form == "mxfp4" else None, num_stacked=mixture.num_experts,
        transposed=rule.transposed and form != "mxfp4",
    )  # fmt: skip
    down = replace(
        gate_up, name=f"{experts}down_proj", shape=(hidden, size), axis=1, sections=(), unit=1
    )
    return [[gate_up, down]] * mixture.num_experts
