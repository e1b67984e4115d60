"""The model that this router serves, as clients of either API list it."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from router.api.generation import context_tokens
from router.runtime import Runtime


def openai_model(runtime: Runtime, since: int) -> dict[str, Any]:
    return {
        "id": runtime.model,
        "object": "model",
        "created": since,
        "owned_by": "baton",
        "max_model_len": context_tokens(runtime),
        "default_sampling_params": asdict(runtime.sampling_defaults),
    }


def anthropic_model(runtime: Runtime, since: int) -> dict[str, Any]:
    most = context_tokens(runtime) - 1
    return {
        "type": "model",
        "id": runtime.model,
        "display_name": runtime.model,
        "created_at": datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": most,
        "max_tokens": most,
    }


def openai_list(model: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [model]}


def anthropic_list(model: dict[str, Any]) -> dict[str, Any]:
    ends = {"first_id": model["id"], "last_id": model["id"]}
    return {"data": [model], "has_more": False, **ends}
