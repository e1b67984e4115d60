"""The request of `/v1/responses`. Sampling fields are those of chats, with what vLLM has besides.

Checks what needs no tokeniser and no store.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from protocol.formats.contract import NamedTool, Tool, ToolChoice
from router.api.errors import bad_field
from router.api.parsing import Reader, Schema, Unsupported
from router.openai.schemas import MAX_LOGPROBS, ChatRequest, Count, Effort, SamplingFields
from router.openai.structured import Label, Note
from router.openai.tools import MAX_TOOLS, MAX_TOOLS_BYTES, check_names, new_tool
from router.responses.items import InputItem, read_input
from router.responses.unsupported import RESPONSES_UNSUPPORTED

MAX_INSTRUCTIONS = 1 << 20
"""Characters, whose tokens the context bounds besides."""
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""Hints, but for the first: reasoning comes and goes as it is, not encrypted, and nobody can have
called the tools of the others here."""


class ResponseTool(Schema, frozen=True, kw_only=True):
    type: Literal["function"]
    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.:/-]{1,128}\Z")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Null is false: arguments are held to their schema only if the client says so."""
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _AllowedTool(Schema, frozen=True, kw_only=True):
    type: Literal["function"]
    name: str


class ResponseToolChoice(Schema, frozen=True, kw_only=True):
    """One function; or some of the tools, of which the others are then not shown."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: tuple[_AllowedTool, ...] = ()


class TextFormat(Schema, frozen=True, kw_only=True):
    """All but the type is a schema's, which is enforced whether or not it is called strict."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Label | None = None
    description: Note | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class TextOptions(Schema, frozen=True, kw_only=True):
    format: TextFormat | None = None
    """None: a text."""
    verbosity: Literal["low", "medium", "high"] | None = None
    """A hint."""


class ReasoningOptions(Schema, frozen=True, kw_only=True):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Reasoning is then given, whole, where summaries are."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """Its older name."""
    context: Literal["auto", "all_turns"] | None = None

    @property
    def as_summary(self) -> bool:
        return (self.summary or self.generate_summary) is not None


_tools = msgspec.json.Decoder(Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)])
_choice = msgspec.json.Decoder(Literal["auto", "none", "required"] | ResponseToolChoice)


def _read_tools(raw: bytes) -> tuple[ResponseTool, ...]:
    if len(raw) > MAX_TOOLS_BYTES:
        raise ValueError(f"at most {MAX_TOOLS_BYTES} bytes of JSON; got {len(raw)}")
    tools = tuple(_tools.decode(raw))
    check_names([tool.name for tool in tools])
    return tools


class ResponseRequest(SamplingFields, frozen=True, kw_only=True):
    unsupported: ClassVar[Unsupported] = RESPONSES_UNSUPPORTED
    large: ClassVar[frozenset[str]] = frozenset({"input", "instructions", "tools"})
    readers: ClassVar[dict[str, Reader]] = {
        **SamplingFields.readers,
        "input": read_input,
        "tools": _read_tools,
        "tool_choice": _choice.decode,
        "chat_template_kwargs": ChatRequest.readers["chat_template_kwargs"],
    }
    input: tuple[InputItem, ...] = ()
    """None: go on from `previous_response_id`."""
    instructions: Annotated[str, Meta(max_length=MAX_INSTRUCTIONS)] | None = None
    previous_response_id: Annotated[str, Meta(max_length=128)] | None = None
    store: bool | None = None  # type: ignore[assignment]
    """None: as the server is set."""
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    """A hint: of tools that a server runs, and this one runs none."""
    tools: tuple[ResponseTool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | ResponseToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()
    include: Annotated[tuple[Includable, ...], Meta(max_length=16)] = ()
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = 0
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def num_logprobs(self) -> int | None:
        asked = self.top_logprobs or "message.output_text.logprobs" in self.include
        return self.top_logprobs if asked else None

    @property
    def text_format(self) -> TextFormat:
        return self.text.format or TextFormat()

    def shown_tools(self) -> tuple[Tool, ...]:
        """Those that the model is shown. Raises ValueError for parameters nested too deeply."""
        choice = self.tool_choice
        allowed = None
        if isinstance(choice, ResponseToolChoice) and choice.type == "allowed_tools":
            allowed = {tool.name for tool in choice.tools}
        return tuple(
            new_tool(
                tool.name,
                tool.description,
                tool.parameters,
                strict=bool(tool.strict),
                place=f"tools[{index}].parameters",
            )
            for index, tool in enumerate(self.tools)
            if allowed is None or tool.name in allowed
        )

    def choice(self) -> ToolChoice:
        """Raises ApiError 400 for a choice of nothing."""
        choice = self.tool_choice
        if not isinstance(choice, ResponseToolChoice):
            return choice
        if choice.type == "allowed_tools":
            return choice.mode
        if choice.name is None:
            raise bad_field("tool_choice.name", "required")
        return NamedTool(choice.name)
