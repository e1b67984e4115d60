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


class _NoKwargs(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    refusal: None = None


_UNREAD = (
    "annotations", "parsed", "id", "status", "weight",  # OpenAI's
    "reasoning_details", "extra_content",  # OpenRouter's and Google's
    "provider_specific_fields", "thinking_blocks", "cache_control",  # LiteLLM's
    "response_metadata", "usage_metadata",  # LangChain's
)  # fmt: skip
"""What messages and parts may have besides: of the answer, not of the chat."""
MORE: dict[str, Any] = {
    **dict.fromkeys(_UNREAD, msgspec.Raw),
    **dict.fromkeys(("images", "files", "citations", "invalid_tool_calls"), Nothing),
    "type": Literal["message"] | None,
    "additional_kwargs": _NoKwargs | None,
}
_MAX_MORE = 32
"""Each further name has the messages read once more, up to the first that has it."""
_UNKNOWN = re.compile(r"Object contains unknown field `([\w.$-]{1,64})`")
_NOT_NULL = re.compile(r"Expected `null`, got `\w+` - at `(.*)\.([\w$-]+)`")


def read_messages(raw: bytes) -> list[Message]:
    """Types grow by the names that a client uses: a message is small, and there may be many."""
    names: tuple[str, ...] = ()
    while True:
        try:
            return _decoder(names).decode(raw)
        except msgspec.ValidationError as error:
            given = _NOT_NULL.fullmatch(str(error))
            if given and given[2] in names:
                rule = f"Object contains unknown field `{given[2]}` - at `{given[1]}`"
                raise msgspec.ValidationError(rule) from error
            unknown = _UNKNOWN.match(str(error))
            if unknown is None or unknown[1] in names or len(names) == _MAX_MORE:
                raise
            names = (*names, unknown[1])


@lru_cache(maxsize=64)
def _decoder(names: tuple[str, ...]) -> msgspec.json.Decoder[list[Message]]:
    """Of messages and parts that may have `names` too; those that are in no list as null."""
    text, refusal = _with(TextPart, names), _with(RefusalPart, names)
    content = str | Annotated[list[text | refusal], Meta(min_length=1)] | None  # type: ignore[valid-type]
    message = _with(Message, names, content=content)
    return msgspec.json.Decoder(Annotated[list[message], Meta(min_length=1)])  # type: ignore[valid-type]


def _with(base: type[Any], names: tuple[str, ...], **types: Any) -> Any:
    known = (*base.__struct_fields__, base.__struct_config__.tag_field)
    new = [name for name in names if name not in known]
    fields = [(name, kind, None) for name, kind in types.items()]
    more = [
        (f"more_{index}", MORE.get(name), msgspec.field(default=None, name=name))
        for index, name in enumerate(new)
    ]
    return msgspec.defstruct(base.__name__, [*fields, *more], bases=(base,), kw_only=True)
