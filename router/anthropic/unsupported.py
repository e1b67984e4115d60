"""What `/v1/messages` has elsewhere and not here: refused by name, never ignored."""

from router.api.parsing import Unsupported
from router.openai.schemas import refused_but

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


_ALL_THOUGHTS = {"type": "clear_thinking_20251015", "keep": "all"}
"""An edit that leaves everything as it is."""
# fmt: off
MESSAGES_UNSUPPORTED: Unsupported = {
    **refused_but(TAKEN),
    # Of Anthropic's.
    "container": (), "diagnostics": (),
    "context_management": ({}, {"edits": []}, {"edits": [_ALL_THOUGHTS]}),
    "fallbacks": ([],), "inference_geo": ("global",), "mcp_servers": ([],), "output_format": (),
    "speed": ("standard",), "thread": (), "workspace_id": (),
}
# fmt: on
