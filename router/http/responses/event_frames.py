"""The events of a streamed response as bytes, numbered as they are made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from router.http.json_pieces import json_pieces
from router.responses.shapes import OutputItem, OutputKind

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class _Words:
    """How the events of an item of a kind are called."""

    part: str
    """"": it has no parts."""
    text: str
    done: str
    """The field of the whole text at its end."""
    index: str
    """Which of its parts; "": it has none."""


_WORDS: dict[OutputKind, _Words] = {
    "message": _Words("content_part", "output_text", "text", "content_index"),
    "reasoning": _Words("content_part", "reasoning_text", "text", "content_index"),
    "summary": _Words("reasoning_summary_part", "reasoning_summary_text", "text", "summary_index"),
    "function_call": _Words("", "function_call_arguments", "arguments", ""),
}


class EventFrames:
    """Of one answer. Every method yields pieces of one or more whole events."""

    def __init__(self) -> None:
        self._num_events = 0

    def response(self, word: str, response: Mapping[str, Any]) -> Iterator[bytes]:
        """`word`: what became of it."""
        yield from self._event(word, {"response": response})

    def begun(self, item: OutputItem) -> Iterator[bytes]:
        shown = item.shape(empty=True)
        yield from self._event("output_item.added", {"output_index": item.index, "item": shown})
        words = _WORDS[item.kind]
        if words.part:
            yield from self._event(f"{words.part}.added", self._where(item) | {"part": item.part()})

    def grown(self, item: OutputItem, text: str, entries: list[Any]) -> Iterator[bytes]:
        """`entries`: log probabilities of the tokens that say `text`."""
        fields = self._where(item) | {"delta": text}
        if item.kind == "message":
            fields["logprobs"] = entries
        yield self._head(f"{_WORDS[item.kind].text}.delta") + _encode(fields)[1:] + b"\n\n"

    def ended(self, item: OutputItem) -> Iterator[bytes]:
        words = _WORDS[item.kind]
        fields = self._where(item) | {words.done: item.text}
        match item.kind:
            case "message":
                fields["logprobs"] = item.entries
            case "function_call":
                fields["name"] = item.name
        yield from self._event(f"{words.text}.done", fields)
        if words.part:
            yield from self._event(f"{words.part}.done", self._where(item) | {"part": item.part()})
        shown = item.shape()
        yield from self._event("output_item.done", {"output_index": item.index, "item": shown})

    def error(self, error: Mapping[str, Any]) -> Iterator[bytes]:
        """With the fields of the error beside it, where the API's document has them, and in it,
        where clients look."""
        fields = {name: error[name] for name in ("code", "message", "param")}
        yield from self._event("", fields | {"error": error})

    def _where(self, item: OutputItem) -> dict[str, Any]:
        where: dict[str, Any] = {"item_id": item.id, "output_index": item.index}
        if index := _WORDS[item.kind].index:
            where[index] = 0
        return where

    def _event(self, word: str, fields: Mapping[str, Any]) -> Iterator[bytes]:
        pieces = json_pieces(fields)
        yield self._head(word) + next(pieces)[1:]
        yield from pieces
        yield b"\n\n"

    def _head(self, word: str) -> bytes:
        """Up to the first of an event's own fields."""
        name = f"response.{word}".encode() if word else b"error"
        number, self._num_events = self._num_events, self._num_events + 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,' % (name, name, number)
