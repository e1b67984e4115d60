"""The messages of a request and their content blocks, as clients write them.

Also as they were answered, because clients send answers back. A block of another kind (an image, a
document, what a server's own tool gave) is refused by its name: it cannot be shown to a model here.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.api.nulls import decode_without_nulls

CallId = Annotated[str, Meta(min_length=1, max_length=1024)]


class Block(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True
):
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """A hint: prefixes are cached without it."""


class TextBlock(Block, frozen=True, kw_only=True, gc=False, tag="text"):
    text: str
    citations: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """Of an answer."""


class ThinkingBlock(Block, frozen=True, kw_only=True, gc=False, tag="thinking"):
    thinking: str
    signature: str = ""
    """Nobody here signs: not read."""


class RedactedThinkingBlock(Block, frozen=True, kw_only=True, gc=False, tag="redacted_thinking"):
    """Another server's, which alone can read it."""

    data: str = ""


class ToolUseBlock(Block, frozen=True, kw_only=True, tag="tool_use"):
    id: CallId
    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    input: dict[str, Any]
    caller: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    toolset_name: None = None


class ToolResultBlock(Block, frozen=True, kw_only=True, tag="tool_result"):
    tool_use_id: CallId
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    toolset_name: None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """That it is an error is said to the model, before its text."""
        given = self.content or ""
        texts = (given,) if isinstance(given, str) else tuple(block.text for block in given)
        if self.is_error and not texts[0].lower().startswith("error"):
            return (f"Error: {texts[0]}", *texts[1:])
        return texts


AnyBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock


class InputMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[AnyBlock]


_messages = msgspec.json.Decoder(Annotated[list[InputMessage], Meta(min_length=1)])
_system = msgspec.json.Decoder(str | list[TextBlock])


def read_messages(raw: bytes) -> list[InputMessage]:
    """Null under any name is not read."""
    messages: list[InputMessage] = decode_without_nulls(_messages, raw)
    return messages


def read_system(raw: bytes) -> tuple[str, ...]:
    """The texts of its blocks."""
    given = decode_without_nulls(_system, raw)
    return (given,) if isinstance(given, str) else tuple(block.text for block in given)
