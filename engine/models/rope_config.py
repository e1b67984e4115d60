"""Reads the ropes of a `config.json`, in the spelling of transformers 4 or 5.

A kind that is not understood, or a key that would change it, is refused by name; what else a rope
names is ignored, as transformers does (`unread_rope_keys`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal, cast, get_args

from engine.models.families.family import Family
from engine.models.rope import (
    QueryGrowth,
    Rope,
    RopeKind,
    longrope_attention_factor,
    rotary_dim,
    yarn_attention_factor,
)
from protocol.text.json_fields import Fields

LayerKind = Literal["full_attention", "sliding_attention"]
KINDS: tuple[LayerKind, ...] = ("full_attention", "sliding_attention")
_READ = frozenset(
    """
    rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings
    low_freq_factor high_freq_factor attention_factor attn_factor extrapolation_factor
    apply_yarn_scaling beta_fast beta_slow mscale mscale_all_dim truncate short_factor long_factor
    short_mscale long_mscale
    """.split()  # noqa: SIM905 - words read better so
)
_TEXT_ALONE = frozenset({"mrope_section", "mrope_interleaved", "finetuned"})
"""Divide the dims among the axes of an image, on which a text's positions are equal; or say how the
weights were made."""
_REFUSED = frozenset({"alpha", "llama_4_scaling_beta"})
"""Change frequencies or scores where they are read: of Hunyuan, Ministral 3."""


def read_ropes(
    fields: Fields, family: Family, *, head_dim: int, context: int
) -> Mapping[LayerKind, Rope]:
    """The rope of each kind of layer; one for both, unless the family has local ropes. `context` is
    the longest sequence that will be computed."""
    read = {kind: Fields(fields.file, raw) for kind, raw in _raws(fields, family).items()}
    return {
        kind: _read(fields, family, rope, head_dim=head_dim, context=context)
        for kind, rope in read.items()
    }


def unread_rope_keys(fields: Fields, family: Family) -> Iterator[str]:
    """What the ropes name that nothing here reads."""
    for raw in _raws(fields, family).values():
        yield from (f"rope.{key}" for key in raw if key not in _READ | _TEXT_ALONE | _REFUSED)


def _raws(fields: Fields, family: Family) -> dict[LayerKind, dict[str, object]]:
    if not family.local_rope:
        return dict.fromkeys(KINDS, _flat(fields))
    local = {"rope_theta": fields.number("rope_local_base_freq")}
    scaling, nested = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise fields.error("rope_scaling", f"must be an object, is {scaling!r}")
    if not isinstance(nested, dict) or not set(nested) <= set(KINDS):
        raise fields.error("rope_parameters", f"must have one object per kind of layer: {KINDS}")
    return {
        "full_attention": (nested.get("full_attention") or {}) | scaling,
        "sliding_attention": local | (nested.get("sliding_attention") or {}),
    }


def read_query_growth(fields: Fields, family: Family) -> QueryGrowth | None:
    key = "llama_4_scaling_beta"
    rope = Fields(fields.file, _flat(fields))
    beta = rope.optional_number(key) if key in family.options else None
    if not beta:
        return None
    return QueryGrowth(beta=beta, step_tokens=rope.size("original_max_position_embeddings"))


def _flat(fields: Fields) -> dict[str, object]:
    """The one dict of transformers 5 (`rope_parameters`) or the pieces of transformers 4."""
    raw = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(raw, dict):
        raise fields.error("rope_scaling", f"must be an object, is {raw!r}")
    return raw


def _read(fields: Fields, family: Family, rope: Fields, *, head_dim: int, context: int) -> Rope:
    theta = rope.optional_number("rope_theta") or fields.number("rope_theta", 10_000.0)
    if theta <= 1:
        raise fields.error("rope_theta", f"must be above 1, is {theta!r}")
    name = str(rope.get("rope_type") or rope.get("type") or "default")
    kind = cast(RopeKind, family.rope_aliases.get(name, name))
    _refuse_unknown(rope, family, kind)
    base = Rope(kind=kind, theta=theta, share=_share(fields, rope, family, head_dim=head_dim))
    if kind == "default":
        return base
    factor, original = _reach(fields, rope, kind)
    base = replace(base, factor=factor, original_max_tokens=original)
    match kind:
        case "linear":
            return base
        case "dynamic":
            return _dynamic(rope, base, head_dim=head_dim)
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            return replace(base, low_freq_factor=low, high_freq_factor=high)
        case "yarn":
            return _yarn(rope, base)
        case "longrope":
            return _longrope(rope, base, context=context, head_dim=head_dim)


def _refuse_unknown(rope: Fields, family: Family, kind: RopeKind) -> None:
    if kind not in get_args(RopeKind):
        known = ", ".join(get_args(RopeKind))
        raise rope.error("rope_type", f"= {kind!r} is not one of {known}")
    for key, value in rope.raw.items():
        if key in _REFUSED - family.options and kind != "default" and value:
            raise rope.error(key, f"= {value!r} is not supported for {family.model_type}")
        if isinstance(value, dict):
            raise rope.error(key, "per-layer rope is not supported")


def _reach(fields: Fields, rope: Fields, kind: RopeKind) -> tuple[float, int]:
    """How many times as far it reaches, and as how many tokens."""
    max_tokens, key = fields.size("max_position_embeddings"), "original_max_position_embeddings"
    original = max_tokens  # of dynamic scaling too: transformers reads no other
    if kind != "dynamic":
        original = fields.optional_size(key) or rope.optional_size(key) or max_tokens
    factor = rope.optional_number("factor")
    if factor is None and kind in ("yarn", "longrope"):
        factor = max_tokens / original
    if factor is None or factor <= 0:
        raise rope.error("factor", "of the rope must be a positive number")
    return factor, original


def _share(fields: Fields, rope: Fields, family: Family, *, head_dim: int) -> float:
    source = rope if rope.get("partial_rotary_factor") is not None else fields
    share = source.number("partial_rotary_factor", 1.0)
    if share != 1 and not family.partial_rotary:
        raise source.error("partial_rotary_factor", "other than 1 is not supported")
    dim = int(head_dim * share)
    if not 0 < share <= 1 or dim < 2 or dim % 2:
        raise source.error("partial_rotary_factor", f"= {share} turns {dim} of {head_dim} dims")
    return share


def _dynamic(rope: Fields, base: Rope, *, head_dim: int) -> Rope:
    if rotary_dim(base, head_dim=head_dim) == 2:
        raise rope.error("rope_type", "= 'dynamic' needs heads of which more than two dims turn")
    return base


def _yarn(rope: Fields, base: Rope) -> Rope:
    """`attn_factor`, `extrapolation_factor` and `apply_yarn_scaling` as vLLM reads them;
    transformers does not."""
    implied = yarn_attention_factor(
        base.factor,
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
    )
    if not rope.flag("apply_yarn_scaling", True):
        implied = 1.0
    attention_factor = rope.number("attention_factor", implied)
    return replace(
        base,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=rope.flag("truncate", True),
        extrapolation_factor=rope.number("extrapolation_factor", 1.0),
        attention_factor=attention_factor * rope.number("attn_factor", 1.0),
    )


def _longrope(rope: Fields, base: Rope, *, context: int, head_dim: int) -> Rope:
    """The long factors for all sequences if any may be long (docs/decisions/0011)."""
    num_pairs = rotary_dim(base, head_dim=head_dim) // 2
    factors = {key: _factors(rope, key, num_pairs) for key in ("short_factor", "long_factor")}
    original = base.original_max_tokens
    if original < 2:
        raise rope.error("original_max_position_embeddings", f"= {original} is too short")
    reach = "long" if context > original else "short"
    implied = longrope_attention_factor(base.factor, original_max_tokens=original)
    implied = rope.number(f"{reach}_mscale", implied)
    return replace(
        base,
        long=reach == "long",
        dim_factors=factors[f"{reach}_factor"],
        attention_factor=rope.number("attention_factor", implied),
    )


def _factors(rope: Fields, key: str, num_pairs: int) -> tuple[float, ...]:
    value = rope.get(key)
    if not isinstance(value, list) or len(value) != num_pairs:
        raise rope.error(key, f"must be {num_pairs} numbers")
    if not all(isinstance(one, int | float) and one > 0 for one in value):
        raise rope.error(key, "must be positive numbers")
    return tuple(float(one) for one in value)
