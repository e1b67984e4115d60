"""Reads the ropes of a `config.json`, in the spelling of transformers 4 or 5.

A kind or a key that is not understood is refused by name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

from engine.models.family import Family
from engine.models.json_fields import Fields
from engine.models.rope import (
    QueryGrowth,
    Rope,
    RopeKind,
    longrope_attention_factor,
    rotary_dim,
    yarn_attention_factor,
)

LayerKind = Literal["full_attention", "sliding_attention"]
KINDS: tuple[LayerKind, ...] = ("full_attention", "sliding_attention")


def read_ropes(fields: Fields, family: Family, *, head_dim: int) -> Mapping[LayerKind, Rope]:
    """The rope of each kind of layer; one for both, unless the family has local ropes."""
    if not family.local_rope:
        rope = _read(fields, family, _flat(fields), head_dim=head_dim)
        return dict.fromkeys(KINDS, rope)
    local = {"rope_theta": fields.number("rope_local_base_freq")}
    scaling, nested = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise fields.error("rope_scaling", f"must be an object, is {scaling!r}")
    if not isinstance(nested, dict) or not set(nested) <= set(KINDS):
        raise fields.error("rope_parameters", f"must have one object per kind of layer: {KINDS}")
    raws: dict[LayerKind, dict[str, object]] = {
        "full_attention": (nested.get("full_attention") or {}) | scaling,
        "sliding_attention": local | (nested.get("sliding_attention") or {}),
    }
    return {kind: _read(fields, family, raws[kind], head_dim=head_dim) for kind in KINDS}


def read_query_growth(fields: Fields, family: Family) -> QueryGrowth | None:
    key = "llama_4_scaling_beta"
    rope = Fields(fields.file, _flat(fields))
    beta = rope.optional_number(key) if key in family.options else None
    if not beta:
        return None
    return QueryGrowth(beta=beta, step_tokens=rope.size("original_max_position_embeddings"))


def _flat(fields: Fields) -> dict[str, object]:
    """The one dict of transformers 5 (`rope_parameters`) or the pieces of transformers 4."""
    default = fields.defaults.get("rope_parameters")  # also where the key is null
    raw = fields.get("rope_scaling") or fields.get("rope_parameters") or default or {}
    if not isinstance(raw, dict):
        raise fields.error("rope_scaling", f"must be an object, is {raw!r}")
    return raw


def _read(fields: Fields, family: Family, raw: dict[str, object], *, head_dim: int) -> Rope:
    rope = Fields(fields.file, raw)
    theta = rope.optional_number("rope_theta") or fields.number("rope_theta", 10_000.0)
    name = rope.get("rope_type") or rope.get("type") or "default"
    kind = cast(RopeKind, family.rope_aliases.get(str(name), name))
    _refuse_unknown(rope, kind, family.rope_ignored | (_MSCALES if family.rope_mscales else set()))
    base = Rope(kind=kind, theta=theta, share=_share(fields, rope, family, head_dim=head_dim))
    if kind == "default":
        return base
    factor = rope.optional_number("factor")
    max_tokens = fields.size("max_position_embeddings")
    original = fields.optional_size("original_max_position_embeddings") or (
        rope.optional_size("original_max_position_embeddings") or max_tokens
    )
    if factor is None and kind in ("yarn", "longrope"):
        factor = max_tokens / original
    if factor is None or factor <= 0:
        raise rope.error("factor", "of the rope must be a positive number")
    base = replace(base, factor=factor, original_max_tokens=original)
    if family.rope_mscales:
        mscale = rope.number("long_mscale" if max_tokens > original else "short_mscale")
        rope = Fields(fields.file, raw | {"attention_factor": mscale})
        base = replace(base, attention_factor=mscale)
    match kind:
        case "linear":
            return base
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            return replace(base, low_freq_factor=low, high_freq_factor=high)
        case "yarn":
            return _yarn(rope, base)
        case "longrope":
            return _longrope(rope, base, max_tokens=max_tokens, head_dim=head_dim)


_MSCALES = {"short_mscale", "long_mscale"}
_ROPE_KEYS: dict[RopeKind, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast"}
    | {"beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor"}
    | {"short_factor", "long_factor"},
}


def _refuse_unknown(rope: Fields, kind: RopeKind, ignored: frozenset[str]) -> None:
    if kind not in _ROPE_KEYS:
        raise rope.error("rope_type", f"= {kind!r} is not one of {', '.join(_ROPE_KEYS)}")
    known = ignored | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    known |= _ROPE_KEYS[kind]
    for key, value in rope.raw.items():
        if key not in known and value is not None and kind != "default":
            raise rope.error(key, f"= {value!r} is not supported for {kind} rope")
        if isinstance(value, dict):
            raise rope.error(key, "per-layer rope is not supported")


def _share(fields: Fields, rope: Fields, family: Family, *, head_dim: int) -> float:
    source = rope if rope.get("partial_rotary_factor") is not None else fields
    share = source.number("partial_rotary_factor", 1.0)
    if share != 1 and not family.partial_rotary:
        raise source.error("partial_rotary_factor", "other than 1 is not supported")
    dim = int(head_dim * share)
    if not 0 < share <= 1 or dim < 2 or dim % 2:
        raise source.error("partial_rotary_factor", f"= {share} turns {dim} of {head_dim} dims")
    return share


def _yarn(rope: Fields, base: Rope) -> Rope:
    implied = yarn_attention_factor(
        base.factor,
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
    )
    return replace(
        base,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=rope.flag("truncate", True),
        attention_factor=rope.number("attention_factor", implied),
    )


def _longrope(rope: Fields, base: Rope, *, max_tokens: int, head_dim: int) -> Rope:
    """The long factors for all sequences if any may be long (docs/decisions/0009)."""
    num_pairs = rotary_dim(base, head_dim=head_dim) // 2
    factors = {key: _factors(rope, key, num_pairs) for key in ("short_factor", "long_factor")}
    original = base.original_max_tokens
    implied = longrope_attention_factor(base.factor, original_max_tokens=original)
    return replace(
        base,
        dim_factors=factors["long_factor" if max_tokens > original else "short_factor"],
        attention_factor=rope.number("attention_factor", implied),
    )


def _factors(rope: Fields, key: str, num_pairs: int) -> tuple[float, ...]:
    value = rope.get(key)
    if not isinstance(value, list) or len(value) != num_pairs:
        raise rope.error(key, f"must be {num_pairs} numbers")
    if not all(isinstance(one, int | float) and one > 0 for one in value):
        raise rope.error(key, "must be positive numbers")
    return tuple(float(one) for one in value)
