"""What `config.json` says of a model, checked, as one frozen value.

Accepts transformers 4 and 5 spellings. What would change the result and is not understood is
refused by name (`engine.models.config_keys`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.kvcache.windows import KvGroup, group_layers
from engine.models.config_keys import (
    IGNORED,
    NULL_MEANS,
    check_architecture,
    check_keys,
    check_wrapper_keys,
)
from engine.models.families.family import BiasRule, Family, Norms, ParallelRule, QkNorm, Wrapper
from engine.models.families.table import FAMILIES
from engine.models.families.wrappers import WRAPPERS
from engine.models.layer_spec import LayerSpec, MixtureSpec, read_layers, read_mixture
from engine.models.rope import QueryGrowth, Rope
from engine.models.rope_config import read_query_growth, unread_rope_keys
from engine.ops.contract import Activation
from protocol.layout import KvDtype, KvLayout
from protocol.text.context import context_tokens
from protocol.text.json_fields import Fields
from protocol.text.text_config import INHERITED, JsonFile, inherit, read_json_file, text_config

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}

MOST: Mapping[str, int] = {
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 8192,
    "hidden_size": 1 << 20,
    "vocab_size": 1 << 24,
    "num_experts": 4096,
    "num_local_experts": 4096,
}
"""Several times as many as any model published has: what is made in proportion stays small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model, ready to build."""

    family: Family
    vocab_size: int
    hidden_size: int
    mlp_size: int
    """Features of a dense layer's MLP."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    """By `max_model_len` and the rope; ropes with short and long factors follow it."""
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    mixture: MixtureSpec | None
    activation: Activation
    attention_scale: float
    """Of q . k."""
    query_growth: QueryGrowth | None
    attention_softcap: float | None
    final_softcap: float | None
    """Logits become `softcap * tanh(logits / softcap)`."""
    embedding_scale: float
    residual_scale: float
    """Of what attention and MLP add to the residual."""
    logits_divisor: float
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_bias: bool
    qk_norm: QkNorm
    parallel: bool
    tied_embeddings: bool
    wrapped: bool = field(compare=False)
    """The text of a multimodal model, whose other tensors may lie beside."""
    source: bytes = field(default=b"", repr=False, compare=False)
    """The bytes of `config.json`."""
    revision: str = ""
    """Digest of the configuration and of every tensor's bytes; set on loading."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def norms(self) -> Norms:
        """Those of its layers: where MLP and attention share one, there is none before the MLP."""
        norms = self.family.norms
        return replace(norms, before_mlp=None) if self.parallel else norms

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer: how many last tokens a token sees, itself included; None: all."""
        return tuple(layer.window for layer in self.layers)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """Each rope once, in the order of the layers that use it first."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope))

    @property
    def dynamic_after(self) -> int | None:
        """Tokens that a prompt may have before its length turns its keys (dynamic ropes); None: it
        never does."""
        dynamic = [rope.original_max_tokens for rope in self.ropes if rope.kind == "dynamic"]
        return min(dynamic, default=None)

    @property
    def identity(self) -> bytes:
        """What KV depends on beside the weights: `source`, and what `max_model_len` chose."""
        chosen = [rope.dim_factors for rope in self.ropes if rope.kind == "longrope"]
        return self.source + (repr(chosen).encode() if chosen else b"")

    @property
    def kv_groups(self) -> tuple[KvGroup, ...]:
        return group_layers(self.windows)

    def kv_layouts(self, *, block_tokens: int, dtype: KvDtype) -> tuple[KvLayout, ...]:
        """What its layers keep, a layout for each pool: one as long as all of them attend; a
        model with layers of another kind has one more for those."""
        attended = KvLayout(
            num_layers=len(self.kv_groups[0].layers),
            num_groups=len(self.kv_groups),
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_tokens=block_tokens,
            dtype=dtype,
        )
        return (attended,)


def read_config(
    path: Path, config: JsonFile | None = None, *, max_model_len: int | None = None
) -> ModelConfig:
    """The model in directory `path`, of which `config` may be given, its `config.json`, for
    sequences of `max_model_len` tokens; None: as many as it takes. Raises CheckpointError naming
    the file and the key, SettingsError for a length that is beyond the model."""
    config = config or read_json_file(path / "config.json")
    outer = Fields(config.file, config.value)
    wrapper = WRAPPERS.get(str(outer.get("model_type")))
    given = outer if wrapper is None else _text(outer, wrapper)
    family = _family(given)
    fields = given.with_defaults(family.defaults, but=NULL_MEANS)
    context = context_tokens(config.file, text_config(config.value), max_model_len)
    for key, most in MOST.items():
        if isinstance(value := fields.get(key), int | float) and value > most:
            raise fields.error(key, f"= {value} is above {most}, the most that is served")
    check_keys(fields, family, context=context, unread=unread_rope_keys(fields, family))
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim") or hidden_size // num_heads
    num_kv_heads = fields.optional_size("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads={num_heads}")
    if head_dim % 2 or not head_dim:
        raise fields.error("head_dim", f"must be even and above 0, is {head_dim}")
    return ModelConfig(
        family=family,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        mlp_size=fields.size(family.mlp.size_key),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context_tokens=context,
        norm_eps=fields.number(family.norms.eps_key, 1e-6),
        layers=read_layers(fields, family, head_dim=head_dim, context=context),
        mixture=read_mixture(fields, family.mixture),
        activation=_activation(fields, family),
        attention_scale=_attention_scale(fields, family, head_dim=head_dim),
        query_growth=read_query_growth(fields, family),
        attention_softcap=_option(fields, family, "attn_logit_softcapping"),
        final_softcap=_option(fields, family, "final_logit_softcapping"),
        embedding_scale=hidden_size**0.5
        if family.embedding_sqrt
        else _scale(fields, family, "embedding_multiplier"),
        residual_scale=_scale(fields, family, "residual_multiplier"),
        logits_divisor=_divisor(fields, family),
        qkv_bias=_flag(fields, family.qkv_bias),
        output_bias=_flag(fields, family.output_bias),
        mlp_bias=_flag(fields, family.mlp_bias),
        head_bias=_flag(fields, family.head_bias),
        qk_norm=_qk_norm(fields, family),
        parallel=_flag(fields, family.parallel),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        wrapped=wrapper is not None,
        source=config.text,
    )


def _text(fields: Fields, wrapper: Wrapper) -> Fields:
    """The part of a multimodal model that describes its text."""
    check_architecture(fields, wrapper)
    not_text = wrapper.keys | {"model_type", "text_config", "architectures"}
    text = fields.get("text_config")
    if flat := wrapper.flat and text is None:
        text = {key: value for key, value in fields.raw.items() if key not in not_text}
    if not isinstance(text, dict):
        raise fields.error("text_config", "is missing or not an object")
    if not flat:
        check_wrapper_keys(fields, wrapper, known=not_text | IGNORED | set(INHERITED))
    if text.get("model_type") == wrapper.model_type:  # as transformers 4 saved some
        text = {**text, "model_type": None}
    text = inherit(fields.raw, text)
    text.pop("architectures", None)  # that of the whole
    if fields.flag("tie_word_embeddings", wrapper.tied):
        text["tie_word_embeddings"] = True
    return Fields(fields.file, text, prefix="" if flat else "text_config.")


def _family(fields: Fields) -> Family:
    name, named = fields.get("model_type"), fields.get("architectures")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if name is None and isinstance(named, list):  # then that says it
        family = next((one for one in FAMILIES.values() if one.architecture in named), None)
    if family is None:
        known = ", ".join([*FAMILIES, *WRAPPERS])
        raise fields.error("model_type", f"= {name!r} is not one of {known}")
    check_architecture(fields, family)
    return family


def _flag(fields: Fields, rule: BiasRule | ParallelRule) -> bool:
    return rule == "always" or (rule != "never" and fields.flag(rule, False))


def _activation(fields: Fields, family: Family) -> Activation:
    key, known = family.activation_key, ", ".join(ACTIVATIONS)
    name = str(fields.get(key, "silu"))
    name = family.activation_aliases.get(name, name)
    if family.activation is None and name not in ACTIVATIONS:
        raise fields.error(key, f"= {name!r} is not one of {known}")
    return family.activation or ACTIVATIONS[name]


def _attention_scale(fields: Fields, family: Family, *, head_dim: int) -> float:
    if "attention_multiplier" in family.options:
        return fields.number("attention_multiplier")
    scalar = _option(fields, family, "query_pre_attn_scalar") or float(head_dim)
    if scalar < 0:
        raise fields.error("query_pre_attn_scalar", f"must be positive, is {scalar!r}")
    return float(scalar**-0.5)


def _option(fields: Fields, family: Family, key: str) -> float | None:
    return fields.optional_number(key) if key in family.options else None


def _scale(fields: Fields, family: Family, key: str) -> float:
    value = _option(fields, family, key)
    return 1.0 if value is None else value


def _divisor(fields: Fields, family: Family) -> float:
    """Of logits: Granite's `logits_scaling`; Cohere's `logit_scale` multiplies them."""
    key = "logit_scale" if "logit_scale" in family.options else "logits_scaling"
    value = _scale(fields, family, key)
    if value <= 0:
        raise fields.error(key, f"must be positive, is {value!r}")
    return 1 / value if key == "logit_scale" else value


def _qk_norm(fields: Fields, family: Family) -> QkNorm:
    key = family.qk_norm_key
    return family.qk_norm if key is None or fields.flag(key, False) else "none"
