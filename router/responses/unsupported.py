"""What `/v1/responses` has elsewhere and not here: refused by name, never ignored."""

from router.api.parsing import Unsupported
from router.openai.schemas import refused_but

# fmt: off
TAKEN = frozenset({
    # Of OpenAI's.
    "model", "stream", "stream_options", "temperature", "top_p", "metadata", "reasoning", "tools",
    "presence_penalty", "frequency_penalty",
    # Of vLLM's, which act in the engine, whatever the API.
    "seed", "stop", "top_k", "min_p", "repetition_penalty", "logit_bias", "allowed_token_ids",
    "ignore_eos", "min_tokens", "stop_token_ids", "include_stop_str_in_output",
    "skip_special_tokens", "cache_salt", "priority", "structured_outputs", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern",
    "guided_decoding_backend", "json_schema", "regex", "ebnf", "grammar",
    # Hints.
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id",
    "session_id", "service_tier", "store",
})
"""Fields of chats that mean here what they mean there; the others have other names, or none."""
RESPONSES_UNSUPPORTED: Unsupported = {
    **refused_but(TAKEN),
    # Of OpenAI's.
    "background": (False,), "background_options": (), "conversation": (), "prompt": (),
    "truncation": ("disabled",), "context_management": ([],), "moderation": (), "image": (),
    "access_programs": (), "prompt_cache_options": ({},),
    # Of chats, which have other names here.
    "messages": (), "logprobs": (), "response_format": ({"type": "text"},),
    # Of vLLM's.
    "include_reasoning": (True,), "enable_response_messages": (False,),
    "previous_input_messages": (),
}
# fmt: on
