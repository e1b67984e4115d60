"""An assistant's message in OpenAI's shape: as it grows, and as the deltas of a stream.

Reasoning is given under both names that clients read.
"""

from collections.abc import Sequence
from typing import Any, assert_never

import msgspec

from protocol.formats.contract import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    OutputEvent,
    Reasoning,
)

REASONING = ("reasoning", "reasoning_content")
_encode = msgspec.json.encode


class ChatMessage:
    """Of one choice."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._heads: list[CallStart] = []
        self._arguments: dict[int, list[str]] = {}

    def add(self, events: Sequence[OutputEvent]) -> None:
        for event in events:
            match event:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case CallStart():
                    self._heads.append(event)
                case CallArguments():
                    self._arguments.setdefault(event.index, []).append(event.text)
                case CallEnd():
                    pass
                case _:
                    assert_never(event)

    def shape(self) -> dict[str, Any]:
        """Content is null if there is none beside calls; what else is absent has no name."""
        content = "".join(self._content)
        shown: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._heads and not content else content,
            "refusal": None,
        }
        if self._reasoning:
            shown |= dict.fromkeys(REASONING, "".join(self._reasoning))
        if self._heads:
            shown["tool_calls"] = [
                _call(head, "".join(self._arguments.get(head.index, ()))) for head in self._heads
            ]
        return shown


def finish_reason(reason: str, *, has_calls: bool) -> str:
    """A text that ended by itself with calls ended for them."""
    return "tool_calls" if reason == "stop" and has_calls else reason


def delta(event: OutputEvent) -> bytes:
    """Empty where the client is told nothing."""
    match event:
        case Content(text):
            return b'{"content":%b}' % _encode(text)
        case Reasoning(text):
            return _encode(dict.fromkeys(REASONING, text))
        case CallStart():
            return _encode({"tool_calls": [{"index": event.index, **_call(event, "")}]})
        case CallArguments():
            piece = {"index": event.index, "function": {"arguments": event.text}}
            return _encode({"tool_calls": [piece]})
        case CallEnd():
            return b""
        case _:
            assert_never(event)


def _call(head: CallStart, arguments: str) -> dict[str, Any]:
    function = {"name": head.name, "arguments": arguments}
    return {"id": head.id, "type": "function", "function": function}
