"""An output's events as items of an answer, and what each event changed.

Any order of events gives items that begin, grow and end once. A text or a thought ends where
something else begins; a call, when it is whole.
"""

from collections.abc import Iterator
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
from router.responses.shapes import ItemStatus, OutputItem, OutputKind, item_id


class ItemBegun(msgspec.Struct, frozen=True, gc=False):
    item: OutputItem


class ItemGrown(msgspec.Struct, frozen=True, gc=False):
    item: OutputItem
    text: str


class ItemEnded(msgspec.Struct, frozen=True, gc=False):
    """Its status says whether it is whole."""

    item: OutputItem


ItemChange = ItemBegun | ItemGrown | ItemEnded


class Transcript:
    """Of one answer."""

    def __init__(self, token: str, *, as_summary: bool) -> None:
        """`token`: of the response's id. `as_summary`: thoughts are given where summaries are."""
        self._token = token
        self._thought: OutputKind = "summary" if as_summary else "reasoning"
        self._open: OutputItem | None = None
        """The text or thought that goes on."""
        self._calls: dict[int, OutputItem] = {}
        """Begun and not ended, by their number."""
        self.items: list[OutputItem] = []

    @property
    def open_message(self) -> OutputItem | None:
        return self._open if self._open is not None and self._open.kind == "message" else None

    def add(self, event: OutputEvent) -> Iterator[ItemChange]:
        """To be exhausted before the next."""
        match event:
            case Content(text=text):
                yield from self._say("message", text)
            case Reasoning(text=text):
                yield from self._say(self._thought, text)
            case CallStart(index=index, id=call_id, name=name):
                yield from self._end_open("completed")
                call = self._calls[index] = self._begin("function_call")
                call.call_id, call.name = call_id, name
                yield ItemBegun(call)
            case CallArguments(index=index, text=text):
                yield _grown(self._calls[index], text)
            case CallEnd(index=index):
                yield _ended(self._calls.pop(index), "completed")
            case _:
                assert_never(event)

    def end(self, *, is_whole: bool) -> Iterator[ItemChange]:
        """The output is over. Not `is_whole`: it was cut, and what was open is incomplete. An
        answer of nothing is an empty message."""
        if not self.items and is_whole:
            yield from self._say("message", "")
        yield from self._end_open("completed" if is_whole else "incomplete")
        for index in list(self._calls):
            yield _ended(self._calls.pop(index), "incomplete")

    def shapes(self) -> list[dict[str, Any]]:
        return [item.shape() for item in self.items]

    def _say(self, kind: OutputKind, text: str) -> Iterator[ItemChange]:
        item = self._open
        if item is None or item.kind != kind:
            yield from self._end_open("completed")
            item = self._open = self._begin(kind)
            yield ItemBegun(item)
        if text:
            yield _grown(item, text)

    def _begin(self, kind: OutputKind) -> OutputItem:
        index = len(self.items)
        item = OutputItem(kind=kind, id=item_id(kind, self._token, index), index=index)
        self.items.append(item)
        return item

    def _end_open(self, status: ItemStatus) -> Iterator[ItemChange]:
        if self._open is not None:
            item, self._open = self._open, None
            yield _ended(item, status)


def _grown(item: OutputItem, text: str) -> ItemGrown:
    item.texts.append(text)
    return ItemGrown(item, text)


def _ended(item: OutputItem, status: ItemStatus) -> ItemEnded:
    item.status = status
    return ItemEnded(item)
