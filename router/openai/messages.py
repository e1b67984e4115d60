"""The messages of a chat: what of them Baton reads, and how a template sees it.

Also as other servers answered them, because clients send answers back: what asks for nothing is
accepted, and null under any name.
"""

import re
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.api.errors import bad_field
from router.openai.turns import Call, Turn, call_arguments


class TextPart(msgspec.Struct, frozen=True, gc=False, tag="text", forbid_unknown_fields=True):
    text: str
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """A hint of Anthropic's, as is the next of OpenAI's. Prefixes are cached without them."""
    prompt_cache_breakpoint: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RefusalPart(msgspec.Struct, frozen=True, gc=False, tag="refusal", forbid_unknown_fields=True):
    """Of a message that was answered to somebody: a text like any other."""

    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Nothing = Annotated[list[None], Meta(max_length=0)] | None


class CalledFunction(msgspec.Struct, frozen=True, gc=False):
    name: Annotated[str, Meta(min_length=1)]
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """Of an answer, sent back: what servers add to it has asked for nothing."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None

    def as_call(self) -> Call:
        arguments = call_arguments(self.function.arguments or {})
        return Call(id=self.id or "", name=self.function.name, arguments=arguments)


class Message(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """A field of type None is one that Baton does not support."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart | RefusalPart], Meta(min_length=1)] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """An older name of `reasoning`, which most templates use."""
    thinking: str | None = None
    """Another one, of Ollama's."""
    refusal: str | None = None
    prefix: bool | None = None
    """Mistral's and DeepSeek's "continue this message"; the next is Qwen's."""
    partial: bool | None = None
    annotations: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it is to be gone on with."""
        return bool(self.prefix or self.partial)

    def turn(self, path: str) -> Turn:
        """Raises ApiError 400 for what its role may not have, or lacks."""
        assistant = self.role == "assistant"
        if self.content is None and not assistant:
            raise bad_field(f"{path}.content", "required")
        if self.is_begun and not assistant:
            raise bad_field(f"{path}.{'prefix' if self.prefix else 'partial'}", "of an assistant's")
        if self.tool_calls and not assistant:
            raise bad_field(f"{path}.tool_calls", "only of an assistant's message")
        if self.tool_call_id is not None and self.role != "tool":
            raise bad_field(f"{path}.tool_call_id", "only of a tool's message")
        return Turn(
            path=path,
            role=self.role,
            content=self._content(),
            name=self.name,
            reasoning=self._reasoning(),
            calls=tuple(call.as_call() for call in self.tool_calls or ()),
            call_id=self.tool_call_id,
        )

    def _content(self) -> str | tuple[str, ...] | None:
        """An answer without text is empty, or absent beside calls."""
        if isinstance(self.content, list):
            return tuple(part.text for part in self.content)
        no_text = None if self.tool_calls and self.content is None else ""
        return self.content or self.refusal or no_text

    def _reasoning(self) -> str | None:
        given = (self.reasoning, self.reasoning_content, self.thinking)
        return next((text for text in given if text is not None), None)


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
_REPLAYED = ("assistant", "tool")
"""Roles of messages that some server, or what it called, has made: what it added asks for
nothing."""


def read_messages(raw: bytes) -> list[Message]:
    """Types grow by the names that a client uses: a message is small, and there may be many."""
    names: tuple[str, ...] = ()
    most = min(_MAX_MORE, _MIN_MORE + _MAX_REREAD // len(raw))
    while True:
        try:
            messages = _decoder(names).decode(raw)
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN.match(str(error))
            if unknown is None or unknown[1] in names or len(names) == most:
                raise
            names = (*names, unknown[1])
            continue
        strange = [(f"more_{i}", name) for i, name in enumerate(names) if name not in MORE]
        for index, message in enumerate(messages if strange else ()):
            if message.role not in _REPLAYED:
                _check_nothing_strange(message, strange, f"$[{index}]")
        return messages


def _check_nothing_strange(message: Message, strange: list[tuple[str, str]], path: str) -> None:
    parts = message.content if isinstance(message.content, list) else []
    places = [(message, path), *((part, f"{path}.content[{i}]") for i, part in enumerate(parts))]
    for place, at in places:
        for field, name in strange:
            given = getattr(place, field, None)
            if given is not None and bytes(given) != b"null":
                rule = f"Object contains unknown field `{name}` - at `{at}`"
                raise msgspec.ValidationError(rule)


@lru_cache(maxsize=64)
def _decoder(names: tuple[str, ...]) -> msgspec.json.Decoder[list[Message]]:
    """Of messages and parts that may have `names` too: as `MORE` says, else anything."""
    text, refusal = _with(names, TextPart), _with(names, RefusalPart)
    parts = Annotated[list[text | refusal], Meta(min_length=1)]  # type: ignore[valid-type]
    message = _with(names, Message, ("content", str | parts | None, None))
    return msgspec.json.Decoder(Annotated[list[message], Meta(min_length=1)])  # type: ignore[valid-type]


def _with(names: tuple[str, ...], base: type[Any], *fields: tuple[str, Any, None]) -> Any:
    known = (*base.__struct_fields__, base.__struct_config__.tag_field)
    more = [
        (f"more_{index}", MORE.get(name, msgspec.Raw), msgspec.field(default=None, name=name))
        for index, name in enumerate(names)
        if name not in known
    ]
    return msgspec.defstruct(base.__name__, [*fields, *more], bases=(base,), kw_only=True)
