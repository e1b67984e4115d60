"""What JSON may stand in the fields of requests that readers of their own decode."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from router.anthropic.content import InputMessage, TextBlock
from router.anthropic.schemas import MessagesRequest, MessageTool
from router.api.parsing import Schema
from router.openai.embeddings import EmbeddingRequest
from router.openai.messages import Message
from router.openai.prompts import MAX_PROMPTS, TokenId
from router.openai.schemas import MAX_BIASES, MAX_STOPS, Bias, Stop
from router.openai.tools import MAX_TOOLS, AllowedChoice, FunctionTool, NamedChoice
from router.responses.items import InputItem
from router.responses.schemas import ResponseRequest, ResponseTool, ResponseToolChoice

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS = [
    {"type": "array", "items": each, "maxItems": MAX_PROMPTS} for each in ({"type": "string"}, _IDS)
]
_PROMPT = Meta(extra_json_schema={"anyOf": [{"type": "string"}, _IDS, *_PROMPTS]})
"""Written out, because msgspec has no union of two kinds of lists."""
_STOPS = Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)]
_SHARED: dict[str, Any] = {
    "messages": Annotated[list[Message], Meta(min_length=1)],
    "prompt": Annotated[Any, _PROMPT],
    "stop": _STOPS,
    "stop_sequences": _STOPS,
    "logit_bias": Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)],
    "chat_template_kwargs": dict[str, Any],
    "documents": list[dict[str, Any]],
    "tools": Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)],
    "tool_choice": Literal["auto", "none", "required"] | NamedChoice | AllowedChoice,
    "tokens": list[TokenId],
}
"""By name: mostly one name means one thing in all requests."""
_OWN: dict[tuple[type[Schema], str], Any] = {
    (EmbeddingRequest, "input"): Annotated[Any, _PROMPT],
    (ResponseRequest, "input"): str | Annotated[list[InputItem], Meta(min_length=1)],
    (ResponseRequest, "tools"): Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)],
    (ResponseRequest, "tool_choice"): Literal["auto", "none", "required"] | ResponseToolChoice,
    (MessagesRequest, "system"): str | list[TextBlock],
    (MessagesRequest, "messages"): Annotated[list[InputMessage], Meta(min_length=1)],
    (MessagesRequest, "tools"): Annotated[list[MessageTool], Meta(max_length=MAX_TOOLS)],
}


def json_type(schema: type[Schema], field: str) -> Any:
    """What JSON may stand in a field of `schema` that a reader decodes."""
    return _OWN.get((schema, field)) or _SHARED[field]
