"""The models that are served, as Anthropic's API lists it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any


def model_shape(name: str, *, since: int, context: int | None) -> dict[str, Any]:
    """`since`: unix seconds. `context`: of prompt and output together, one token at least
    each; None: not known now."""
    most = None if context is None else context - 1
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": most,
        "max_tokens": most,
    }


def models_shape(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A list of all."""
    first, last = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    return {"data": models, "has_more": False, "first_id": first, "last_id": last}
