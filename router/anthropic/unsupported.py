"""What `/v1/messages` has elsewhere and not here: refused by name, never ignored."""

from router.api.parsing import Unsupported
from router.openai.unsupported import CHAT_UNSUPPORTED

# fmt: off
MESSAGES_UNSUPPORTED: Unsupported = {
    **CHAT_UNSUPPORTED,
    # Of Anthropic's.
    "container": (), "context_management": ({}, {"edits": []}), "diagnostics": (),
    "fallbacks": ([],), "inference_geo": ("global",), "mcp_servers": ([],), "output_format": (),
    "speed": ("standard",),
    # Of chats, which have other names here, or none.
    "n": (1,), "stop": ([],), "stream_options": ({},), "store": (False,),
}
# fmt: on
