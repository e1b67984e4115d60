"""Which tensors a checkpoint of a model holds: their names and shapes.

Families differ in names (`engine.models.family`); one family's checkpoints differ in a `Naming`,
which is found by looking.
"""

# Shapes: V vocabulary, K hidden size, N features out, F features of an MLP or expert, E experts,
# B MXFP4 blocks of a row.

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from engine.checkpoint.quant.mxfp4 import BLOCK
from engine.models.config import ModelConfig
from engine.models.family import ExpertForm
from engine.models.layer_spec import MixtureSpec
from protocol.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]
NOT_TEXT = ("vision_tower.", "multi_modal_projector.")
"""Parts of multimodal models that are not served; perhaps below `model.`."""
QUANTISED = ("_blocks", "_scales")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One linear of the checkpoint: [N, K] `.weight`, and perhaps a `.bias`."""

    name: str
    shape: tuple[int, int]
    bias: bool

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias_name(self) -> str:
        return f"{self.name}.bias"

    def shapes(self) -> Shapes:
        bias = {self.bias_name: self.shape[:1]} if self.bias else {}
        return {self.weight: self.shape, **bias}


def stored_qkv(config: ModelConfig, prefix: str) -> tuple[Stored, ...]:
    """What the linear that makes q, k and v is stacked from."""
    hidden, bias = config.hidden_size, config.qkv_bias
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    if config.family.fused:
        sizes = {"qkv_proj": heads + 2 * kv_heads}
    return tuple(
        Stored(name=f"{prefix}self_attn.{name}", shape=(size, hidden), bias=bias)
        for name, size in sizes.items()
    )


def stored_output(config: ModelConfig, prefix: str) -> Stored:
    shape = (config.hidden_size, config.num_heads * config.head_dim)
    return Stored(name=f"{prefix}self_attn.o_proj", shape=shape, bias=config.output_bias)


def stored_gate_up(config: ModelConfig, prefix: str, size: int) -> tuple[Stored, ...]:
    """Of an MLP of `size` features whose tensors start with `prefix`."""
    hidden, bias = config.hidden_size, config.mlp_bias
    names = {"gate_proj": size, "up_proj": size}
    if config.family.fused:
        names = {"gate_up_proj": 2 * size}
    return tuple(
        Stored(name=f"{prefix}{name}", shape=(rows, hidden), bias=bias)
        for name, rows in names.items()
    )


def stored_down(config: ModelConfig, prefix: str, size: int) -> Stored:
    shape = (config.hidden_size, size)
    return Stored(name=f"{prefix}down_proj", shape=shape, bias=config.mlp_bias)


def mixture_block(mixture: MixtureSpec, form: ExpertForm) -> str:
    """Where a sparse layer's router and experts are; transformers 5's own form renames it."""
    return mixture.rule.block if form == "each" else "mlp."


def tensor_shapes(config: ModelConfig, naming: Naming) -> Shapes:
    """Every tensor it must hold, by name. CheckpointError for sizes that its form cannot hold."""
    hidden = config.hidden_size
    if naming.experts == "mxfp4" and config.mixture is not None:
        _check_blocks({"hidden_size": hidden, config.mixture.rule.size_key: config.mixture.size})
    shapes: Shapes = {naming.embedding: (config.vocab_size, hidden)}
    for index, layer in enumerate(config.layers):
        prefix = naming.layer(index)
        for stored in (*stored_qkv(config, prefix), stored_output(config, prefix)):
            shapes |= stored.shapes()
        if layer.sparse:
            assert config.mixture is not None
            shapes |= _router(config, config.mixture, prefix, naming.experts)
            shapes |= _experts(config, config.mixture, prefix, naming.experts)
        else:
            shapes |= _mlp(config, f"{prefix}mlp.", config.mlp_size)
        shapes |= dict(_norms(config, prefix))
    shapes[naming.final_norm] = (hidden,)
    if not config.tied_embeddings:
        shapes[naming.head] = (config.vocab_size, hidden)
    return shapes


def _check_blocks(sizes: Mapping[str, int]) -> None:
    for key, size in sizes.items():
        if size % BLOCK:
            raise CheckpointError(
                f"config.json: {key} = {size} must be a multiple of {BLOCK} for MXFP4 experts"
            )


def _mlp(config: ModelConfig, prefix: str, size: int) -> Shapes:
    shapes: Shapes = {}
    for stored in (*stored_gate_up(config, prefix, size), stored_down(config, prefix, size)):
        shapes |= stored.shapes()
    return shapes


def _norms(config: ModelConfig, prefix: str) -> Iterator[tuple[str, tuple[int]]]:
    family, norms = config.family, config.family.norms
    for name in (norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp):
        if name is not None:
            yield f"{prefix}{name}.weight", (config.hidden_size,)
    if family.qk_norm != "none":
        full = family.qk_norm == "full"
        for name, heads in (("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)):
            size = config.head_dim * (heads if full else 1)
            yield f"{prefix}self_attn.{name}.weight", (size,)
    if family.sinks:
        yield f"{prefix}self_attn.sinks", (config.num_heads,)


def _router(config: ModelConfig, mixture: MixtureSpec, prefix: str, form: ExpertForm) -> Shapes:
    block, rule = prefix + mixture_block(mixture, form), mixture.rule
    shape = (mixture.num_experts, config.hidden_size)
    shapes = Stored(name=f"{block}{rule.router}", shape=shape, bias=rule.biased).shapes()
    if mixture.shared_size is not None:
        shapes |= _mlp(config, f"{block}shared_expert.", mixture.shared_size)
        shapes[f"{block}shared_expert_gate.weight"] = (1, config.hidden_size)
    return shapes


def _experts(config: ModelConfig, mixture: MixtureSpec, prefix: str, form: ExpertForm) -> Shapes:
    rule, experts = mixture.rule, f"{prefix}{mixture_block(mixture, form)}experts."
    num_experts, hidden, size = mixture.num_experts, config.hidden_size, mixture.size
    sizes = {"gate_up_proj": (2 * size, hidden), "down_proj": (hidden, size)}
    shapes: Shapes = {}
    if form == "each":
        for expert in range(num_experts):
            for name in (rule.gate, rule.up):
                shapes[f"{experts}{expert}.{name}.weight"] = (size, hidden)
            shapes[f"{experts}{expert}.{rule.down}.weight"] = (hidden, size)
        return shapes
    for name, (rows, columns) in sizes.items():
        if form == "mxfp4":
            num_blocks = columns // BLOCK
            shapes[f"{experts}{name}_blocks"] = (num_experts, rows, num_blocks, BLOCK // 2)
            shapes[f"{experts}{name}_scales"] = (num_experts, rows, num_blocks)
        else:
            shape = (columns, rows) if rule.transposed else (rows, columns)
            shapes[f"{experts}{name}"] = (num_experts, *shape)
        if rule.biased:
            shapes[f"{experts}{name}_bias"] = (num_experts, rows)
    return shapes
