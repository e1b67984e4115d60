"""What a chat consists of, whatever API its body was of: turns, as templates are shown them.

Each turn knows the path by which its client named it, for errors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

MAX_ARGUMENTS_DEPTH = 64
"""Deeper arguments stay a text: a template would recurse over them."""

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call that the model made earlier."""

    id: str
    name: str
    arguments: Mapping[str, Any] | str
    """As `call_arguments` gives them."""

    def as_shown(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message."""

    path: str
    """Of the message in the client's body, e.g. `messages[3]`."""
    role: Role
    content: str | tuple[str, ...] | None = ""
    """A text, or the texts of its parts."""
    name: str | None = None
    reasoning: str | None = None
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    """Of the call that a tool answers."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The parts of its content."""
        return self.content if isinstance(self.content, tuple) else (self.content or "",)

    def as_shown(self, *, knows_developer: bool) -> dict[str, Any]:
        """As a template gets it. `developer` is `system` to one that does not know it."""
        role = "system" if self.role == "developer" and not knows_developer else self.role
        content: Any = self.content
        if isinstance(content, tuple):
            content = [{"type": "text", "text": text} for text in content]
        shown = {
            "content": content,
            "name": self.name,
            "reasoning_content": self.reasoning,
            "tool_calls": [call.as_shown() for call in self.calls] or None,
            "tool_call_id": self.call_id,
        }
        return {"role": role} | {key: value for key, value in shown.items() if value is not None}


def call_arguments(given: str | Mapping[str, Any]) -> Mapping[str, Any] | str:
    """An object, which templates write as they like; as a text what is none, or nested deeply."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
        check_depth(value, MAX_ARGUMENTS_DEPTH)
    except (ValueError, RecursionError):
        return given if isinstance(given, str) else msgspec.json.encode(given).decode()
    return value if isinstance(value, dict) or not isinstance(given, str) else given


def check_depth(value: object, most: int) -> None:
    """ValueError for JSON that is nested deeper."""
    level = [value]
    for _ in range(most):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level]
        level = [each for one in inner if isinstance(one, list) for each in one]
    if any(isinstance(one, dict | list) for one in level):
        raise ValueError(f"nested deeper than {most}")
