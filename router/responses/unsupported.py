"""What `/v1/responses` has elsewhere and not here: refused by name, never ignored."""

from router.api.parsing import Unsupported
from router.openai.unsupported import CHAT_UNSUPPORTED

_SERVED = ("reasoning",)
"""Of what chats refuse."""
# fmt: off
RESPONSES_UNSUPPORTED: Unsupported = {
    **{name: harmless for name, harmless in CHAT_UNSUPPORTED.items() if name not in _SERVED},
    # Of OpenAI's.
    "background": (False,), "background_options": (), "conversation": (), "prompt": (),
    "truncation": ("disabled",), "context_management": ([],), "moderation": (), "image": (),
    "access_programs": (), "prompt_cache_options": ({},),
    # Of chats, which have other names here.
    "n": (1,), "max_tokens": (), "messages": (), "logprobs": (),
    "response_format": ({"type": "text"},),
    # Of vLLM's.
    "include_reasoning": (True,), "enable_response_messages": (False,),
    "previous_input_messages": (), "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,), "prompt_logprobs": (),
}
# fmt: on
