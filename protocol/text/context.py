"""How long a sequence may be, by `config.json` and `max_model_len`.

The router and the engine ask here, so that they agree. The pool may hold fewer: it is not known.
"""

from collections.abc import Mapping
from pathlib import Path

from protocol.errors import SettingsError
from protocol.text.json_fields import MAX_SIZE, Fields

EXTENDING = frozenset({"linear", "dynamic", "yarn"})
"""Ropes that reach `factor` times as far as the model was trained. The others' context is
`max_position_embeddings`: what was trained or tuned with the rope."""
FACTOR_INCLUDED = ("gemma3", "gemma3_text")
"""Families published with linear scaling whose `max_position_embeddings` is the extended one."""


def longest_context(file: Path, text: Mapping[str, object]) -> int:
    """Tokens that the model described by `text`, of `file`, can take: original x factor where its
    rope extends it. Raises CheckpointError naming the key."""
    fields, rope = Fields(file, text), Fields(file, scaled_rope(text))
    trained = fields.size("max_position_embeddings")
    kind = str(rope.get("rope_type") or rope.get("type"))
    if kind not in EXTENDING or "long_factor" in rope.raw or _is_included(fields, rope):
        return trained
    key = "original_max_position_embeddings"
    original = fields.optional_size(key) or rope.optional_size(key) or trained
    factor = rope.optional_number("factor")
    if factor is None:  # then it is what those two give
        return trained
    if factor <= 0:
        raise rope.error("factor", f"must be positive, is {factor!r}")
    if original * factor > MAX_SIZE:
        raise rope.error("factor", f"= {factor!r} reaches further than {MAX_SIZE} tokens")
    reached = int(original * factor)
    return reached if kind == "yarn" else max(reached, trained)


def context_tokens(file: Path, text: Mapping[str, object], max_model_len: int | None) -> int:
    """As `longest_context`, cut by `max_model_len`. Raises SettingsError for one beyond it."""
    longest = longest_context(file, text)
    if max_model_len is None or max_model_len <= longest:
        return max_model_len or longest
    raise SettingsError(
        f"max_model_len: {max_model_len}: the model takes {longest} tokens, by {file}; a "
        "rope_scaling there extends it, as the model's card may say"
    )


def scaled_rope(text: Mapping[str, object]) -> Mapping[str, object]:
    """The rope that a long context depends on: of full attention, where kinds of layer have their
    own; in the spelling of transformers 4 or 5; {} for none."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = text.get(key)
        if isinstance(rope, dict) and rope:
            nested = rope.get("full_attention")
            return nested if isinstance(nested, dict) else rope
    return {}


def _is_included(fields: Fields, rope: Fields) -> bool:
    named = fields.get("model_type") in FACTOR_INCLUDED
    return named and rope.get("original_max_position_embeddings") is None
