"""The request of `/v1/messages` and of `/v1/messages/count_tokens`. Sampling fields are those of
chats, with what vLLM has besides.

Checks what needs no tokeniser.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from protocol.formats.contract import NamedTool, Tool, ToolChoice
from router.anthropic.content import InputMessage, read_messages, read_system
from router.anthropic.unsupported import MESSAGES_UNSUPPORTED
from router.api.errors import bad_field
from router.api.nulls import decode_without_nulls
from router.api.parsing import Reader, Schema, Unsupported
from router.openai.schemas import ChatRequest, Count, SamplingFields
from router.openai.tools import MAX_TOOLS, MAX_TOOLS_BYTES, Name, check_names, new_tool

Effort = Literal["low", "medium", "high", "xhigh", "max"]
UserId = Annotated[str, Meta(max_length=1024)]


class MessageTool(Schema, frozen=True, kw_only=True):
    name: Name
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    """Others are tools that a server or a client of Anthropic's has built in."""
    description: str | None = None
    strict: bool | None = None
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    eager_input_streaming: bool | None = None
    """A hint: inputs are streamed as they are written."""
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    input_examples: Annotated[list[None], Meta(max_length=0)] | None = None


class MessageToolChoice(Schema, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Schema, frozen=True, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    """A target, for templates that tell the model of it; `max_tokens` bounds an answer, its
    thinking included."""
    display: Literal["summarized", "omitted"] | None = None
    """`summarized` shows all of it."""


class MessageFormat(Schema, frozen=True, kw_only=True):
    type: Literal["json_schema"]
    schema: Any


class OutputConfig(Schema, frozen=True, kw_only=True):
    effort: Effort | None = None
    format: MessageFormat | None = None


class MessageMetadata(Schema, frozen=True, kw_only=True):
    user_id: UserId | None = None


_tools = msgspec.json.Decoder(Annotated[list[MessageTool], Meta(max_length=MAX_TOOLS)])


def _read_tools(raw: bytes) -> tuple[Tool, ...]:
    """ValueError: too large, too deep, or a name given twice."""
    if len(raw) > MAX_TOOLS_BYTES:
        raise ValueError(f"at most {MAX_TOOLS_BYTES} bytes of JSON; got {len(raw)}")
    tools: list[MessageTool] = decode_without_nulls(_tools, raw)
    check_names([tool.name for tool in tools])
    return tuple(
        new_tool(
            tool.name,
            tool.description,
            tool.input_schema,
            strict=bool(tool.strict),
            place=f"tools[{index}].input_schema",
        )
        for index, tool in enumerate(tools)
    )


class MessagesRequest(SamplingFields, frozen=True, kw_only=True):
    unsupported: ClassVar[Unsupported] = MESSAGES_UNSUPPORTED
    large: ClassVar[frozenset[str]] = frozenset({"messages", "system", "tools"})
    readers: ClassVar[dict[str, Reader]] = {
        **SamplingFields.readers,
        "messages": read_messages,
        "system": read_system,
        "stop_sequences": SamplingFields.readers["stop"],
        "tools": _read_tools,
        "chat_template_kwargs": ChatRequest.readers["chat_template_kwargs"],
    }
    messages: list[InputMessage]
    system: tuple[str, ...] = ()
    stop_sequences: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: MessageToolChoice = MessageToolChoice(type="auto")
    thinking: Thinking | None = None
    """None: as the model's template does by itself."""
    output_config: OutputConfig = OutputConfig()
    metadata: MessageMetadata | None = None  # type: ignore[assignment]  # not OpenAI's
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """A hint."""
    user_profile_id: UserId = ""
    service_tier: Literal["auto", "standard_only"] = "auto"
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        SamplingFields.__post_init__(self)
        thinking, choice = self.thinking, self.tool_choice
        if thinking and thinking.type == "enabled" and thinking.budget_tokens is None:
            raise bad_field("thinking.budget_tokens", "required")
        if choice.type == "tool" and choice.name is None:
            raise bad_field("tool_choice.name", "required")

    @property
    def choice(self) -> ToolChoice:
        """As all APIs have it."""
        match self.tool_choice:
            case MessageToolChoice(type="any"):
                return "required"
            case MessageToolChoice(type="tool", name=str(name)):
                return NamedTool(name)
            case MessageToolChoice(type="none"):
                return "none"
            case _:
                return "auto"
