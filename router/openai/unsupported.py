"""What clients ask of other servers and Baton does not do: refused by name, never ignored.

Each field is listed with the values that ask for nothing, besides null; those are accepted.
"""

from router.openai.parsing import Unsupported

# fmt: off
_SAMPLERS: dict[str, tuple[object, ...]] = {
    "use_beam_search": (False,), "length_penalty": (1.0,), "early_stopping": (False,),
    "spaces_between_special_tokens": (True,), "truncate_prompt_tokens": (), "prompt_logprobs": (),
    "logits_processors": ([],), "allowed_token_ids": (), "bad_words": ([],),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "structured_outputs": (), "response_format": ({"type": "text"},), "priority": (0,),
    "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
    "kv_transfer_params": (), "lora_path": ("",),
}
CHAT_UNSUPPORTED: Unsupported = {
    **_SAMPLERS,
    "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False),
    "functions": ([],), "function_call": ("none", "auto"), "audio": (), "modalities": (["text"],),
    "prediction": (), "reasoning_effort": (), "verbosity": ("medium",), "web_search_options": (),
    "prompt_cache_key": (), "prompt_cache_retention": (), "store": (False,),
    "service_tier": ("auto", "default"), "echo": (False,), "continue_final_message": (False,),
    "add_special_tokens": (False,), "chat_template": (), "documents": ([],),
}
COMPLETION_UNSUPPORTED: Unsupported = {**_SAMPLERS, "suffix": ("",)}
MESSAGE_UNSUPPORTED: Unsupported = {
    "refusal": (), "audio": (), "function_call": (), "tool_calls": ([],), "tool_call_id": (),
    "annotations": ([],),
}
# fmt: on
