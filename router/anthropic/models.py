"""The model that is served, as Anthropic's API lists it."""

from datetime import UTC, datetime
from typing import Any


def model_shape(name: str, *, since: int, context: int) -> dict[str, Any]:
    """`since`: unix seconds. `context`: of prompt and output together, one token at least each."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": context - 1,
        "max_tokens": context - 1,
    }


def models_shape(model: dict[str, Any]) -> dict[str, Any]:
    """A list of one."""
    ends = {"first_id": model["id"], "last_id": model["id"]}
    return {"data": [model], "has_more": False, **ends}
