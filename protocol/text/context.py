"""How long a sequence may be, by `config.json` and `max_model_len`.

The router and the engine ask here, so that they agree. The pool may hold fewer: it is not known.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from protocol.errors import CheckpointError, SettingsError

EXTENDING = frozenset({"linear", "dynamic", "yarn"})
"""Ropes that reach `factor` times as far as the model was trained. The others' context is
`max_position_embeddings`: what was trained or tuned with the rope."""
FACTOR_INCLUDED = ("gemma3", "gemma3_text")
"""Families published with linear scaling whose `max_position_embeddings` is the extended one."""


def longest_context(file: Path, text: Mapping[str, object]) -> int:
    """Tokens that the model described by `text`, of `file`, can take: original x factor where its
    rope extends it. Raises CheckpointError naming the key."""
    trained = _positive(file, text, "max_position_embeddings")
    if trained is None or not trained.is_integer():
        value = text.get("max_position_embeddings")
        raise CheckpointError(
            f"{file}: max_position_embeddings is {value!r}, not a positive whole number"
        )
    rope = scaled_rope(text)
    kind = str(rope.get("rope_type") or rope.get("type"))
    if kind not in EXTENDING or "long_factor" in rope or _is_included(text, rope):
        return int(trained)
    key = "original_max_position_embeddings"
    original = _positive(file, text, key) or _positive(file, rope, key)
    factor = _positive(file, rope, "factor")
    if factor is None:  # then it is what those two give
        return int(trained)
    reached = int((original or trained) * factor)
    return reached if kind == "yarn" else max(reached, int(trained))


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


def _is_included(text: Mapping[str, object], rope: Mapping[str, object]) -> bool:
    named = text.get("model_type") in FACTOR_INCLUDED
    return named and rope.get("original_max_position_embeddings") is None


def _positive(file: Path, fields: Mapping[str, object], key: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{file}: {key} is {value!r}, not a positive number")
    if not 0 < value < math.inf:
        raise CheckpointError(f"{file}: {key} is {value!r}, not a positive number")
    return float(value)
