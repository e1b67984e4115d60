"""What clients ask of other servers and Baton does not do: refused by name, never ignored.

Each field is listed with the values that ask for nothing, besides null; those are accepted. Fields
are those of OpenAI's SDK, of vLLM and of SGLang that one or the other documents.
"""

from router.api.parsing import Unsupported

# fmt: off
_SAMPLERS: dict[str, tuple[object, ...]] = {
    "use_beam_search": (False,), "length_penalty": (1.0,), "early_stopping": (False,),
    "spaces_between_special_tokens": (True,), "truncate_prompt_tokens": (),
    "truncation_side": (), "watermarking": (False,), "thinking_token_budget": (-1,),
    "logprob_token_ids": (), "repetition_detection": (), "stream_interval": (1,),
    "stop_regex": ([],), "no_stop_trim": (False,), "custom_logit_processor": (),
    "logits_processors": ([],), "bad_words": ([],),
    "structural_tag": (), "vllm_xargs": ({},), "custom_params": ({},),
    "return_hidden_states": (False,), "return_token_offsets": (False,),
    "kv_transfer_params": (), "ec_transfer_params": (), "lora_path": ("",), "session_params": ({},),
    "return_mm_kwargs": (True,), "mm_processor_kwargs": ({},), "media_io_kwargs": ({},),
}
CHAT_UNSUPPORTED: Unsupported = {
    **_SAMPLERS,
    "functions": ([],), "function_call": ("none", "auto"), "audio": (), "modalities": (["text"],),
    "web_search_options": (), "moderation": (),
    "echo": (False,), "add_special_tokens": (False,), "chat_template": (), "reasoning": (),
    "stream_reasoning": (True,), "return_prompt_text": (False,), "input_ids": (),
}
COMPLETION_UNSUPPORTED: Unsupported = {
    **_SAMPLERS, "suffix": ("",), "prompt_embeds": (),
}
EMBEDDING_UNSUPPORTED: Unsupported = {
    "truncate_prompt_tokens": (), "truncation_side": (), "embed_dtype": ("float32",),
    "endianness": ("native", "little"), "normalize": (), "use_activation": (), "messages": (),
    "mm_processor_kwargs": ({},), "priority": (0,),
}
TOKENIZE_UNSUPPORTED: Unsupported = {
    "return_token_strs": (False,), "chat_template": (), "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
}
# fmt: on
