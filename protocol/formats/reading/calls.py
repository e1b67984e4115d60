"""The calls of one output as they are read: each begins, gets its arguments, and ends whole or not.

Does not know formats.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from protocol.formats.contract import CallArguments, CallEnd, CallStart, OutputEvent, Tool
from protocol.formats.reading.values import ALL_KINDS, as_json, parameter_kinds
from protocol.formats.table import OutputFormat, Takes

_WRITTEN_ID = re.compile(r"(?:functions\.)?(?P<name>[^:]*)(?::\d+)?$")
_STRING = frozenset({"string"})
_KINDS = {Takes.STRING: _STRING, Takes.JSON: ALL_KINDS - _STRING}


class Calls:
    """Appends to `events`. At most one call is open."""

    def __init__(self, of: OutputFormat, tools: Sequence[Tool], events: list[OutputEvent]) -> None:
        self._format = of
        self._tools = {tool.name: tool for tool in tools}
        self._seed = secrets.token_bytes(16)
        self._events = events
        self._index = -1
        self._arguments: list[str] = []
        self._parameters: Mapping[str, Any] = {}
        self._has_parameters = Takes.PARAMETERS in of.states.values()
        """They come one by one, else as JSON."""
        self._kinds = ALL_KINDS
        self._value = ""
        """Of the present parameter, not given out."""
        self._is_first = False
        """Nothing of the present parameter has come."""
        self.is_open = False

    def knows(self, name: str) -> bool:
        return name in self._tools

    def begin(self, name: str, *, is_id: bool) -> None:
        """`is_id`: as the model wrote it, with the name in it."""
        self._index += 1
        call_id = name if self._format.ids == "written" and is_id else self._new_id()
        if is_id and (found := _WRITTEN_ID.match(name)):
            name = found["name"]
        tool = self._tools.get(name)
        self._parameters = {} if tool is None else tool.parameters
        self._arguments = []
        self.is_open = True
        self._events.append(CallStart(index=self._index, id=call_id, name=name))

    def arguments(self, text: str) -> None:
        if text:
            self._arguments.append(text)
            self._events.append(CallArguments(index=self._index, text=text))

    def key(self, name: str, takes: Takes) -> None:
        """A parameter begins, whose value is text, or JSON, or as its schema says."""
        before = ", " if self._arguments else "{"
        self._kinds = _KINDS.get(takes) or parameter_kinds(self._parameters, name)
        self._value, self._is_first = "", True
        quote = '"' if self._is_streamed else ""
        self.arguments(f"{before}{json.dumps(name, ensure_ascii=False)}: {quote}")

    @property
    def _is_streamed(self) -> bool:
        """The present parameter is a string, whatever comes."""
        return self._kinds == _STRING

    def value(self, text: str) -> None:
        """More of the present parameter."""
        trims = self._format.trim_lines
        self._value += text.removeprefix("\n") if trims and self._is_first else text
        self._is_first = self._is_first and not text
        if self._is_streamed:
            end = len(self._value) - (trims and self._value.endswith("\n"))
            self.arguments(_escaped(self._value[:end]))
            self._value = self._value[end:]

    def end_value(self) -> None:
        value = self._value.removesuffix("\n") if self._format.trim_lines else self._value
        self.arguments(f'{_escaped(value)}"' if self._is_streamed else as_json(value, self._kinds))

    def end(self) -> None:
        """The open call, if any, is over."""
        if not self.is_open:
            return
        if self._has_parameters:
            self.arguments("}" if self._arguments else "{}")
        self.is_open = False
        if _is_object("".join(self._arguments)):
            self._events.append(CallEnd(index=self._index))

    def _new_id(self) -> str:
        digest = hashlib.blake2b(self._seed + self._index.to_bytes(4), digest_size=16).hexdigest()
        return digest[:9] if self._format.ids == "nine" else f"call_{digest[:24]}"


def _escaped(text: str) -> str:
    """As it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
