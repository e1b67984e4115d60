"""What an output consists of, read by a format: events, and the parser that makes them.

Whatever the pieces an output comes in, the events' texts joined are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec


class Content(msgspec.Struct, frozen=True, gc=False):
    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    text: str


class CallStart(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A tool call begins, whose name is known whole. Calls are numbered 0, 1, 2, ..."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """More of the JSON text of a call's arguments: a slice of what the model wrote, where the
    format writes JSON."""

    index: int
    text: str


class CallEnd(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A call is whole, and its arguments are a JSON object. One without it was cut."""

    index: int


OutputEvent = Content | Reasoning | CallStart | CallArguments | CallEnd


class OutputParser(Protocol):
    """Of one choice. Not thread-safe."""

    def feed(self, token_id: int, text: str) -> Sequence[OutputEvent]:
        """The next token and the text that came with it, which may lag behind; where the token is
        one of the marks (`protocol.messages.Sampling.marks`), the text is what precedes it."""

    def finish(self, *, is_cut: bool = False) -> Sequence[OutputEvent]:
        """The output is over: what was held back. `is_cut`: it would have gone on, so that what may
        still become a call or a tag is nothing; what was told begins what would have been."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any]
    """JSON Schema of its arguments, an object."""
    strict: bool = False
    """Arguments are held to the schema while they are generated."""
    place: str = ""
    """Of its parameters in the client's body, for errors: `tools[0].function.parameters`."""


class ToolError(ValueError):
    """A tool that no grammar of its calls can be made for: `place` is what of it, in the client's
    body. Not `is_wrong`: it asks for what cannot be done."""

    def __init__(self, tool: Tool, path: str, rule: str, *, is_wrong: bool = False) -> None:
        super().__init__(f"{tool.name}: {path or 'parameters'}: {rule}")
        self.place = f"{tool.place}.{path}".removesuffix(".")
        self.rule = rule
        self.is_wrong = is_wrong


@dataclass(frozen=True, slots=True)
class NamedTool:
    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool
