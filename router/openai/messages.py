"""The messages of a chat: what of them Baton reads, and how a template sees it.

Also as other servers answered them, because clients send answers back: what asks for nothing is
accepted.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class TextPart(msgspec.Struct, frozen=True, gc=False, tag="text", forbid_unknown_fields=True):
    text: str
    cache_control: msgspec.Raw = msgspec.Raw()
    """A hint of Anthropic's, as is the next of OpenAI's. Prefixes are cached without them."""
    prompt_cache_breakpoint: msgspec.Raw = msgspec.Raw()


class RefusalPart(msgspec.Struct, frozen=True, gc=False, tag="refusal", forbid_unknown_fields=True):
    """Of a message that was answered to somebody: a text like any other."""

    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Nothing = Annotated[list[None], Meta(max_length=0)] | None


class Message(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """A field of type None is one that Baton does not support."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart | RefusalPart], Meta(min_length=1)] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """An older name of `reasoning`, which most templates use."""
    refusal: str | None = None
    annotations: msgspec.Raw = msgspec.Raw()
    provider_specific_fields: msgspec.Raw = msgspec.Raw()
    """LiteLLM's; of the answer, not of the chat."""
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None
    tool_call_id: None = None

    @property
    def texts(self) -> list[str]:
        """The parts of its content."""
        if isinstance(self.content, list):
            return [part.text for part in self.content]
        return [self.content or ""]

    def as_shown(self, *, knows_developer: bool) -> dict[str, Any]:
        """As a template gets it. `developer` is `system` to one that does not know it; an answer
        without text is empty."""
        role = "system" if self.role == "developer" and not knows_developer else self.role
        shown: dict[str, Any] = {"role": role, "content": self.content or self.refusal or ""}
        if isinstance(self.content, list):
            shown["content"] = [{"type": "text", "text": part.text} for part in self.content]
        if self.name is not None:
            shown["name"] = self.name
        reasoning = self.reasoning if self.reasoning is not None else self.reasoning_content
        if reasoning is not None:
            shown["reasoning_content"] = reasoning
        return shown


Messages = Annotated[list[Message], Meta(min_length=1)]
