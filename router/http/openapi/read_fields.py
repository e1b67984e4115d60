"""What JSON may stand in the fields of requests that readers of their own decode."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.openai.messages import Message
from router.openai.prompts import MAX_PROMPTS, TokenId
from router.openai.schemas import MAX_BIASES, MAX_STOPS, Bias, Stop
from router.openai.tools import MAX_TOOLS, FunctionTool, Name


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: Name


class NamedToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS = [
    {"type": "array", "items": each, "maxItems": MAX_PROMPTS} for each in ({"type": "string"}, _IDS)
]
_PROMPT = Meta(extra_json_schema={"anyOf": [{"type": "string"}, _IDS, *_PROMPTS]})
"""Written out, because msgspec has no union of two kinds of lists."""
READ_FIELDS: dict[str, Any] = {
    "messages": Annotated[list[Message], Meta(min_length=1)],
    "prompt": Annotated[Any, _PROMPT],
    "stop": Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)],
    "logit_bias": Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)],
    "chat_template_kwargs": dict[str, Any],
    "documents": list[dict[str, Any]],
    "tools": Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)],
    "tool_choice": Literal["auto", "none", "required"] | NamedToolChoice,
    "tokens": list[TokenId],
}
"""By name: one name means one thing in all requests."""
