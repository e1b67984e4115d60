"""The messages of a chat: what of them Baton reads, and how a template sees it.

Also as other servers answered them, because clients send answers back: what asks for nothing is
accepted, and null under any name.
"""

import re
from functools import lru_cache
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
    thinking: str | None = None
    """Another one, of Ollama's."""
    refusal: str | None = None
    prefix: bool | None = None
    """Mistral's and DeepSeek's "continue this message", which is refused; the next is Qwen's."""
    partial: bool | None = None
    annotations: msgspec.Raw = msgspec.Raw()
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
        for reasoning in (self.reasoning, self.reasoning_content, self.thinking):
            if reasoning is not None:
                shown.setdefault("reasoning_content", reasoning)
        return shown


Messages = Annotated[list[Message], Meta(min_length=1)]
MORE: dict[str, Any] = {
    **dict.fromkeys(("annotations", "parsed", "id", "status", "weight"), msgspec.Raw),  # OpenAI's
    **dict.fromkeys(("reasoning_details", "extra_content"), msgspec.Raw),  # OpenRouter's, Google's
    **dict.fromkeys(("provider_specific_fields", "thinking_blocks"), msgspec.Raw),  # LiteLLM's
    **dict.fromkeys(("response_metadata", "usage_metadata"), msgspec.Raw),  # LangChain's
    **dict.fromkeys(("images", "files", "citations", "invalid_tool_calls"), Nothing),
    "cache_control": msgspec.Raw,
    "type": Literal["message"] | None,
    "additional_kwargs": dict[Literal["refusal"], None] | None,
}
"""What messages and parts may have besides: of an answer and not of the chat, or nothing."""
_MAX_MORE, _MIN_MORE, _MAX_REREAD = 32, 4, 4 << 20
"""For each further name the messages are read once more, up to the first that has it: so many in a
small request, so many in the largest; bytes in all for those between."""
_UNKNOWN = re.compile(r"Object contains unknown field `([\w.$-]{1,64})`")
_NOT_NULL = re.compile(r"Expected `null`, got `\w+` - at `(.*)\.([\w$-]+)`")


def read_messages(raw: bytes) -> list[Message]:
    """Types grow by the names that a client uses: a message is small, and there may be many."""
    names: tuple[str, ...] = ()
    most = min(_MAX_MORE, _MIN_MORE + _MAX_REREAD // len(raw))
    while True:
        try:
            return _decoder(names).decode(raw)
        except msgspec.ValidationError as error:
            if (given := _NOT_NULL.fullmatch(str(error))) and given[2] in names:
                rule = f"Object contains unknown field `{given[2]}` - at `{given[1]}`"
                raise msgspec.ValidationError(rule) from error
            unknown = _UNKNOWN.match(str(error))
            if unknown is None or unknown[1] in names or len(names) == most:
                raise
            names = (*names, unknown[1])


@lru_cache(maxsize=64)
def _decoder(names: tuple[str, ...]) -> msgspec.json.Decoder[list[Message]]:
    """Of messages and parts that may have `names` too: as `MORE` says, else null."""
    text, refusal = _with(names, TextPart), _with(names, RefusalPart)
    parts = Annotated[list[text | refusal], Meta(min_length=1)]  # type: ignore[valid-type]
    message = _with(names, Message, ("content", str | parts | None, None))
    return msgspec.json.Decoder(Annotated[list[message], Meta(min_length=1)])  # type: ignore[valid-type]


def _with(names: tuple[str, ...], base: type[Any], *fields: tuple[str, Any, None]) -> Any:
    known = (*base.__struct_fields__, base.__struct_config__.tag_field)
    more = [
        (f"more_{index}", MORE.get(name), msgspec.field(default=None, name=name))
        for index, name in enumerate(names)
        if name not in known
    ]
    return msgspec.defstruct(base.__name__, [*fields, *more], bases=(base,), kw_only=True)
