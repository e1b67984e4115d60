"""Reads the rope of a `config.json`, in the spelling of transformers 4 or 5.

Called by `engine.config`. A kind or a key that is not understood is refused by name.
"""

from typing import cast

from engine.fields import Fields
from engine.rope import Rope, RopeKind, yarn_attention_factor


def read_rope(fields: Fields) -> Rope:
    """The one dict of transformers 5 (`rope_parameters`) or the pieces of transformers 4."""
    raw = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(raw, dict):
        raise fields.error("rope_scaling", f"must be an object, is {raw!r}")
    rope = Fields(fields.file, raw)
    theta = rope.optional_number("rope_theta") or fields.number("rope_theta", 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    known |= _ROPE_KEYS.get(cast(RopeKind, kind), set())
    if kind not in _ROPE_KEYS:
        raise rope.error("rope_type", f"= {kind!r} is not one of {', '.join(_ROPE_KEYS)}")
    for key, value in raw.items():
        if key not in known and value is not None and kind != "default":
            raise rope.error(key, f"= {value!r} is not supported for {kind} rope")
        if isinstance(value, dict):
            raise rope.error(key, "per-layer rope is not supported")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise rope.error("partial_rotary_factor", "other than 1 is not supported")
    if kind == "default":
        return Rope(theta=theta)
    factor = rope.optional_number("factor")
    original = fields.optional_size("original_max_position_embeddings") or (
        rope.optional_size("original_max_position_embeddings")
        or fields.size("max_position_embeddings")
    )
    if factor is None and kind == "yarn":
        factor = fields.size("max_position_embeddings") / original
    if factor is None or factor <= 0:
        raise rope.error("factor", "of the rope must be a positive number")
    if kind == "linear":
        return Rope(kind="linear", theta=theta, factor=factor)
    if kind == "llama3":
        return Rope(
            kind="llama3",
            theta=theta,
            factor=factor,
            original_max_tokens=original,
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
        )
    return _yarn(rope, theta=theta, factor=factor, original=original)


_ROPE_KEYS: dict[RopeKind, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast"}
    | {"beta_slow", "mscale", "mscale_all_dim", "truncate"},
}


def _yarn(rope: Fields, *, theta: float, factor: float, original: int) -> Rope:
    named = rope.optional_number("attention_factor")
    implied = yarn_attention_factor(
        factor,
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
    )
    return Rope(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_max_tokens=original,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=rope.flag("truncate", True),
        attention_factor=implied if named is None else named,
    )
