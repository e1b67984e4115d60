"""What `/v1/messages` has elsewhere and not here: refused by name, never ignored."""

from typing import Any

import msgspec

from router.api.parsing import Unsupported
from router.openai.schemas import SamplingFields
from router.openai.unsupported import CHAT_UNSUPPORTED

# fmt: off
TAKEN = frozenset({
    # Of Anthropic's.
    "model", "stream", "max_tokens", "temperature", "top_p", "top_k", "metadata", "service_tier",
    # Of vLLM's, which act in the engine, whatever the API.
    "seed", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "allowed_token_ids", "ignore_eos", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "skip_special_tokens", "cache_salt", "priority",
    # Hints.
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id",
    "session_id", "store",
})
"""Fields of chats that mean here what they mean there; the others have other names, or none."""
# fmt: on


def _harmless(default: object) -> tuple[Any, ...]:
    """What asks for as much as leaving it out."""
    return (default,) if isinstance(default, bool | int | float | str) else ()


_ALL_THOUGHTS = {"type": "clear_thinking_20251015", "keep": "all"}
"""An edit that leaves everything as it is."""
# fmt: off
MESSAGES_UNSUPPORTED: Unsupported = {
    **{name: values for name, values in CHAT_UNSUPPORTED.items() if name not in TAKEN},
    **{one.name: _harmless(one.default) for one in msgspec.structs.fields(SamplingFields)
       if one.name not in TAKEN},
    # Of Anthropic's.
    "container": (), "diagnostics": (),
    "context_management": ({}, {"edits": []}, {"edits": [_ALL_THOUGHTS]}),
    "fallbacks": ([],), "inference_geo": ("global",), "mcp_servers": ([],), "output_format": (),
    "speed": ("standard",), "thread": (), "workspace_id": (),
}
# fmt: on
