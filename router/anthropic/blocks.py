"""The content blocks of an answer as they grow, from what a parser reads in it.

White space that begins a text waits for what follows: between thoughts and calls it is no text.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from pydantic_core import from_json

from protocol.formats.contract import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    OutputEvent,
    Reasoning,
)

Kind = Literal["text", "thinking", "tool_use"]
_EMPTY: dict[Kind, dict[str, Any]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
}


class OutputBlock:
    def __init__(self, index: int, kind: Kind, named: dict[str, str]) -> None:
        self.index = index
        self.kind = kind
        self._named = named
        self.texts: list[str] = []

    @property
    def begun(self) -> dict[str, Any]:
        """As it is when nothing of it is known but its kind and name."""
        return {"type": self.kind, **self._named, **_EMPTY[self.kind]}

    @property
    def signature(self) -> str:
        """Of thoughts: a digest, for clients that want one; nobody checks it."""
        return hashlib.sha256("".join(self.texts).encode()).hexdigest()

    def shape(self) -> dict[str, Any]:
        """As it is in an answer given whole."""
        text = "".join(self.texts)
        match self.kind:
            case "text":
                return self.begun | {"text": text}
            case "thinking":
                return self.begun | {"thinking": text, "signature": self.signature}
            case "tool_use":
                return self.begun | {"input": _input(text)}
            case _:
                assert_never(self.kind)


@dataclass(frozen=True, slots=True)
class BlockBegun:
    block: OutputBlock


@dataclass(frozen=True, slots=True)
class BlockGrown:
    block: OutputBlock
    text: str


@dataclass(frozen=True, slots=True)
class BlockEnded:
    block: OutputBlock


BlockChange = BlockBegun | BlockGrown | BlockEnded


class OutputBlocks:
    """Of one answer. Not thread-safe."""

    def __init__(self, *, shows_thinking: bool) -> None:
        self.blocks: list[OutputBlock] = []
        self.has_calls = False
        self._open: OutputBlock | None = None
        self._blank = ""
        self._shows_thinking = shows_thinking

    def add(self, event: OutputEvent) -> Iterator[BlockChange]:
        match event:
            case Content(text):
                yield from self._text(text)
            case Reasoning(text):
                yield from self._enter("thinking")
                if self._shows_thinking:
                    yield from self._grow(text)
            case CallStart():
                self.has_calls = True
                yield from self.end()
                yield from self._enter("tool_use", id=event.id, name=event.name)
            case CallArguments(text=text):
                yield from self._grow(text)
            case CallEnd():
                yield from self.end()
            case _:
                assert_never(event)

    def end(self) -> Iterator[BlockChange]:
        """Of the block that is open, if one is."""
        self._blank = ""
        if self._open is not None:
            yield BlockEnded(self._open)
            self._open = None

    def _text(self, text: str) -> Iterator[BlockChange]:
        if self._open is None or self._open.kind != "text":
            self._blank += text
            if not (text := self._blank).strip():
                return
            yield from self._enter("text")
        yield from self._grow(text)

    def _enter(self, kind: Kind, **named: str) -> Iterator[BlockChange]:
        if self._open is None or self._open.kind != kind:
            yield from self.end()
            self._open = OutputBlock(len(self.blocks), kind, named)
            self.blocks.append(self._open)
            yield BlockBegun(self._open)

    def _grow(self, text: str) -> Iterator[BlockChange]:
        assert self._open is not None, "arguments belong to a call that has begun"
        self._open.texts.append(text)
        yield BlockGrown(self._open, text)


def _input(arguments: str) -> dict[str, Any]:
    """What of it is whole, if the answer was cut, as Anthropic's SDK reads a stream; by Anthropic's
    name for it what is no JSON object at all."""
    try:
        value = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
