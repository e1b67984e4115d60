"""The tools of a chat and the choice among them, as OpenAI writes them.

Says nothing about what of a JSON Schema can be enforced: only strict tools need that.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.formats.contract import NamedTool, Tool, ToolChoice
from router.openai.turns import check_depth

MAX_TOOLS = 1024
MAX_TOOLS_BYTES = 1 << 20
"""Of JSON. OpenAI's limit is 128 tools; agents with many servers of tools send some 300 kB."""
MAX_DEPTH = 64
"""Of a tool's parameters: templates recurse over them."""
NO_PARAMETERS = {"type": "object", "properties": {}}

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.:/-]{1,128}\Z")]


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"]
    function: Function
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """A hint of Anthropic's."""


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name


class NamedChoice(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"
):
    function: ChosenFunction


class AllowedFunction(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"
):
    function: ChosenFunction


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Some of the tools: of the others the model hears nothing."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedFunction], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"
):
    allowed_tools: AllowedTools


_tools = msgspec.json.Decoder(Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)])
_word = msgspec.json.Decoder(Literal["auto", "none", "required"])
_choice = msgspec.json.Decoder(NamedChoice | AllowedChoice)


def read_tools(raw: bytes) -> tuple[Tool, ...]:
    """ValueError: too large, too deep, or a name given twice."""
    if len(raw) > MAX_TOOLS_BYTES:
        raise ValueError(f"at most {MAX_TOOLS_BYTES} bytes of JSON; got {len(raw)}")
    functions = [tool.function for tool in _tools.decode(raw)]
    check_names([function.name for function in functions])
    return tuple(
        new_tool(
            one.name,
            one.description,
            one.parameters,
            strict=bool(one.strict),
            place=f"tools[{index}].function.parameters",
        )
        for index, one in enumerate(functions)
    )


def new_tool(
    name: str,
    description: str | None,
    parameters: dict[str, Any] | None,
    *,
    strict: bool,
    place: str,
) -> Tool:
    """`place`: of the parameters, in the body. ValueError: they are nested too deeply."""
    check_depth(parameters or {}, MAX_DEPTH)
    shown = parameters or NO_PARAMETERS
    return Tool(
        name=name, description=description or "", parameters=shown, strict=strict, place=place
    )


def check_names(names: list[str]) -> None:
    """ValueError for one that is given twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} is given twice")
        seen.add(name)


def read_choice(raw: bytes) -> ToolChoice | AllowedTools:
    if not raw.lstrip().startswith(b"{"):
        choice: ToolChoice = _word.decode(raw)
        return choice
    match _choice.decode(raw):
        case NamedChoice(function):
            return NamedTool(function.name)
        case AllowedChoice(allowed):
            return allowed


def only_allowed(tools: tuple[Tool, ...], allowed: AllowedTools) -> tuple[Tool, ...]:
    """ValueError: one of them is not there."""
    names = {one.function.name for one in allowed.tools}
    for name in sorted(names):
        check_choice(tools, NamedTool(name))
    return tuple(tool for tool in tools if tool.name in names)


def check_choice(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """ValueError: it asks for a tool that is not there."""
    match choice:
        case NamedTool(name) if name not in (tool.name for tool in tools):
            raise ValueError(f"{name} is none of the tools")
        case "required" if not tools:
            raise ValueError("required, but there are no tools")
        case _:
            pass


def tool_shown(tool: Tool) -> dict[str, Any]:
    """As a template gets it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    if not tool.description:
        del function["description"]
    return {"type": "function", "function": function}
