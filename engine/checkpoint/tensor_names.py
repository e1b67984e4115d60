"""Which parameters a checkpoint of a model holds, and by which names.

Families differ in names (`engine.models.family`); one family's checkpoints differ in a `Naming`,
which is found by looking.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from engine.checkpoint.parameters import LinearSpec, Pairs, Specs, TensorSpec
from engine.checkpoint.quant.formats import FORMATS
from engine.checkpoint.shard import Cut
from engine.models.config import ModelConfig
from engine.models.family import ExpertForm, MlpRule
from engine.models.layer_spec import MixtureSpec
from engine.models.rope import rotary_dim
from protocol.errors import CheckpointError


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
    def head_bias(self) -> str:
        return self.head.removesuffix("weight") + "bias"

    @property
    def final_norm(self) -> str:
        return f"{self.body}norm"

    def layer(self, index: int) -> str:
        return f"{self.body}layers.{index}."


HEAD_NORMS: tuple[Literal["q", "k"], ...] = ("q", "k")
_PREFIX = "model."
"""`base_model_prefix` of every family here."""
_ROWS, _COLUMNS = Cut(axis=0), Cut(axis=1)
_BODIES = (
    Naming(),
    Naming(body="model.language_model."),
    Naming(body="language_model.model.", head="language_model.lm_head.weight"),
)


def find_naming(config: ModelConfig, names: Collection[str]) -> Naming:
    """The naming that these tensors follow; the default where none fits, for the errors."""
    marks = ((one, {one.embedding, one.final_norm}) for one in _BODIES)
    body = next((one for one, mark in marks if not mark.isdisjoint(names)), _BODIES[0])
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


def find_places(names: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """By the names that the model wants, those of the stored tensors that are meant: their own, or
    as transformers has it with its prefix more or less, for a body that was saved alone. Raises
    CheckpointError for two that mean the same."""
    places: dict[str, str] = {}
    for name in names:
        meant = next((one for one in _meanings(name) if one in wanted), name)
        if meant in places:
            raise CheckpointError(f"tensors {places[meant]} and {name} are both {meant}")
        places[meant] = name
    return places


def all_meanings(names: Iterable[str]) -> set[str]:
    return {meaning for name in names for meaning in _meanings(name)}


def _meanings(name: str) -> tuple[str, str, str]:
    """First what transformers looks for first."""
    return name.removeprefix(_PREFIX), _PREFIX + name, name


def is_not_text(name: str) -> bool:
    """Of a part of a multimodal model that is not served; perhaps below `model.`."""
    parts = ("vision_tower.", "multi_modal_projector.", "visual.")
    return name.removeprefix("model.").startswith(parts)


def attention_linears(config: ModelConfig, prefix: str) -> tuple[LinearSpec, ...]:
    """What the one that makes q, k and v is merged of, and the output's."""
    dim, stem = config.head_dim, f"{prefix}self_attn."
    kv_size, q_size = dim * config.num_kv_heads, dim * config.num_heads
    sizes = {f"{stem}q_proj": q_size, f"{stem}k_proj": kv_size, f"{stem}v_proj": kv_size}
    of_heads, pairs = Cut(axis=0, unit=dim), head_pairs(config)
    output = LinearSpec(
        name=f"{stem}o_proj",
        shape=(config.hidden_size, q_size),
        bias=config.output_bias,
        cut=Cut(axis=1, unit=dim),
    )
    if config.family.fused:
        of_heads = replace(of_heads, sections=tuple(sizes.values()))
        sizes = {f"{stem}qkv_proj": sum(sizes.values())}
    parts = tuple(
        LinearSpec(name=name, shape=(size, config.hidden_size), bias=config.qkv_bias, cut=of_heads)
        for name, size in sizes.items()
    )
    if pairs is not None:
        q, k, v = parts
        parts = replace(q, pairs=pairs), replace(k, pairs=pairs), v
    return *parts, output


def head_pairs(config: ModelConfig) -> Pairs | None:
    """The order in which q's and k's dims are stored, where it is not ours."""
    if not config.family.interleaved_rope or not config.ropes:
        return None
    turned = rotary_dim(config.ropes[0], head_dim=config.head_dim)
    return Pairs(head_dim=config.head_dim, turned=turned)


def mlp_linears(
    config: ModelConfig, rule: MlpRule, prefix: str, size: int
) -> tuple[LinearSpec, ...]:
    """Of an MLP of `size` features: what gate with up is merged of, or up alone, and down."""
    stem, hidden, bias = f"{prefix}{rule.block}", config.hidden_size, config.mlp_bias
    down = LinearSpec(name=f"{stem}{rule.down}", shape=(hidden, size), bias=bias, cut=_COLUMNS)
    rows, cut = size, _ROWS
    if rule.gated and len(rule.gate_up) == 1:
        rows, cut = 2 * size, Cut(axis=0, sections=(size, size))
    gate_up = (
        LinearSpec(name=f"{stem}{name}", shape=(rows, hidden), bias=bias, cut=cut)
        for name in rule.gate_up
    )
    return *gate_up, down


def mixture_linears(
    config: ModelConfig, mixture: MixtureSpec, prefix: str, form: ExpertForm
) -> list[LinearSpec]:
    """Beside the experts: the router, whole for every rank; of an expert that all tokens share,
    those of its MLP and its gate."""
    rule, shape = mixture.rule, (mixture.num_experts, config.hidden_size)
    router = rule.stacked_router if form == "stacked" and rule.stacked_router else rule.router
    name = prefix + mixture_block(mixture, form) + router
    name += ".layer" if form == "granite" else ""
    linears = [LinearSpec(name=name, shape=shape, bias=rule.biased)]
    if mixture.shared_size is not None and rule.shared is not None:
        linears += mlp_linears(config, rule.shared, prefix, mixture.shared_size)
        if rule.shared.gate is not None:
            gate = f"{prefix}{rule.shared.gate}"
            linears.append(LinearSpec(name=gate, shape=(1, config.hidden_size)))
    return linears


def mixture_block(mixture: MixtureSpec, form: ExpertForm) -> str:
    """Where a sparse layer's router and experts are; transformers 5's own form may rename it."""
    rule = mixture.rule
    return rule.block if form in ("each", "granite") else rule.stacked_block


def tensor_specs(config: ModelConfig, naming: Naming) -> Specs:
    """Every tensor it must hold, by name. CheckpointError for sizes that its form cannot hold."""
    if naming.experts == "mxfp4" and config.mixture is not None:
        _check_blocks(config.hidden_size, config.mixture, block=FORMATS["mxfp4"].block)
    vocabulary = TensorSpec(shape=(config.vocab_size, config.hidden_size))
    specs: Specs = {naming.embedding: vocabulary}
    for index, layer in enumerate(config.layers):
        prefix = naming.layer(index)
        specs |= _tensors_of(attention_linears(config, prefix))
        if layer.sparse:
            assert config.mixture is not None
            linears = mixture_linears(config, config.mixture, prefix, naming.experts)
            specs |= _tensors_of(linears)
            specs |= _experts(config, config.mixture, prefix, naming.experts)
        else:
            specs |= _tensors_of(mlp_linears(config, config.family.mlp, prefix, config.mlp_size))
        specs |= dict(_norms(config, prefix))
    specs |= norm_tensors(config, naming.final_norm)
    if not config.tied_embeddings:
        specs[naming.head] = vocabulary
    if config.head_bias:
        specs[naming.head_bias] = TensorSpec(shape=(config.vocab_size,))
    return specs


def norm_tensors(config: ModelConfig, name: str) -> Specs:
    """Of a norm over the hidden size: its weight, and perhaps its bias."""
    ends = ("weight", "bias") if config.family.norms.bias else ("weight",)
    return {f"{name}.{end}": TensorSpec(shape=(config.hidden_size,)) for end in ends}


def _check_blocks(hidden: int, mixture: MixtureSpec, *, block: int) -> None:
    for key, size in (("hidden_size", hidden), (mixture.rule.size_key, mixture.size)):
        if size % block:
            raise CheckpointError(
                f"config.json: {key} = {size} must be a multiple of {block} for MXFP4 experts"
            )


def _tensors_of(linears: Iterable[LinearSpec]) -> Specs:
    return {name: spec for linear in linears for name, spec in linear.tensors.items()}


def _norms(config: ModelConfig, prefix: str) -> Iterator[tuple[str, TensorSpec]]:
    norms = config.norms
    for name in (norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp):
        if name is not None:
            yield from norm_tensors(config, f"{prefix}{name}").items()
    for which in HEAD_NORMS:
        yield from head_norm(config, prefix, which).items()
    if config.family.sinks:
        yield f"{prefix}self_attn.sinks", TensorSpec(shape=(config.num_heads,), cut=_ROWS)


def head_norm(config: ModelConfig, prefix: str, which: Literal["q", "k"]) -> Specs:
    """Tensors of the norm of q's or k's heads: none, one, or one for each head."""
    heads = config.num_heads if which == "q" else config.num_kv_heads
    name, dim = f"{prefix}self_attn.{which}_norm.weight", config.head_dim
    match config.qk_norm:
        case "none":
            return {}
        case "head":
            return {name: TensorSpec(shape=(dim,))}
        case "full":
            return {name: TensorSpec(shape=(dim * heads,), cut=Cut(axis=0, unit=dim))}
        case "layer":
            return {name: TensorSpec(shape=(heads, dim), cut=_ROWS)}
        case "layers":
            stem = f"{prefix}self_attn.{which}_layernorm.norms"
            return {f"{stem}.{h}.weight": TensorSpec(shape=(dim,)) for h in range(heads)}
        case _:
            assert_never(config.qk_norm)


def _experts(config: ModelConfig, mixture: MixtureSpec, prefix: str, form: ExpertForm) -> Specs:
    specs = _tensors_of(_expert_parts(config.hidden_size, mixture, form)).items()
    stems = dict.fromkeys(_expert_stems(mixture, prefix, form))
    return {f"{stem}{name}": spec for stem in stems for name, spec in specs}


def expert_linears(
    hidden: int, mixture: MixtureSpec, prefix: str, form: ExpertForm
) -> Iterator[list[LinearSpec]]:
    """Of each expert of the layer whose tensors start with `prefix`: gate, up and down, or the
    stacks of gate with up and of down."""
    parts = _expert_parts(hidden, mixture, form)
    for stem in _expert_stems(mixture, prefix, form):
        yield [replace(part, name=f"{stem}{part.name}") for part in parts]


def _expert_stems(mixture: MixtureSpec, prefix: str, form: ExpertForm) -> list[str]:
    """What each expert's names begin with."""
    experts = prefix + mixture_block(mixture, form)
    experts += "" if form == "granite" else "experts."
    each = form == "each"
    return [f"{experts}{number}." if each else experts for number in range(mixture.num_experts)]


def _expert_parts(hidden: int, mixture: MixtureSpec, form: ExpertForm) -> tuple[LinearSpec, ...]:
    """Their names without the stem. Ranks share every expert, as they share an MLP."""
    rule, size = mixture.rule, mixture.size
    if form == "each":
        up = LinearSpec(name=rule.up, shape=(size, hidden), cut=_ROWS)
        down = LinearSpec(name=rule.down, shape=(hidden, size), cut=_COLUMNS)
        return replace(up, name=rule.gate), up, down
    granite = form == "granite"
    gate_up = LinearSpec(
        name="input_linear.weight" if granite else "gate_up_proj",
        shape=(2 * size, hidden),
        bias=rule.biased,
        cut=Cut(axis=0, unit=2) if rule.interleaved else Cut(axis=0, sections=(size, size)),
        format="mxfp4" if form == "mxfp4" else None,
        num_stacked=mixture.num_experts,
        transposed=rule.transposed,
    )
    down_name = "output_linear.weight" if granite else "down_proj"
    return gate_up, replace(gate_up, name=down_name, shape=(hidden, size), cut=_COLUMNS)
