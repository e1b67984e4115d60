"""What a call says in JSON, as it comes in pieces: its name and its arguments, or these alone.

Arguments are slices of what the model wrote, never rewritten.
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from protocol.formats.reading.json_value import SPACE, JsonValue, end_of

_ASIDE = frozenset({"type", "id", "tool_call_id"})


class JsonReader(Protocol):
    name: str | None
    """Of the call, once it is known."""

    is_broken: bool
    """Nothing goes on with it."""

    @property
    def done(self) -> bool: ...

    @property
    def in_string(self) -> bool: ...

    def read(self, text: str, at: int) -> tuple[int, str]:
        """Where in `text` what belongs to it ends, of which more begins at `at`, and what of that
        is arguments. Unless `done`, what is left, if any, cannot be part of it."""


class Arguments:
    """A JSON object alone."""

    name: str | None = None
    is_broken = False

    def __init__(self) -> None:
        self._value = JsonValue()
        self._begun = False

    @property
    def done(self) -> bool:
        return self._value.done

    @property
    def in_string(self) -> bool:
        return self._value.in_string

    def read(self, text: str, at: int) -> tuple[int, str]:
        if not self._begun:
            at = end_of(SPACE, text, at)
            if text[at : at + 1] != "{":
                return at, ""
            self._begun = True
        end = self._value.extent(text, at)
        return end, text[at:end]


class Envelope:
    """An object with a name and arguments, in any order; of two of either the first counts. No
    arguments are `{}`."""

    def __init__(self, roles: Mapping[str, str], *, is_strict: bool) -> None:
        """`is_strict`: an object with other keys before its name is none."""
        self._roles, self._is_strict = roles, is_strict
        self.name: str | None = None
        self.done = self.is_broken = False
        self._part = "begin"
        self._value = JsonValue()
        self._role = ""
        self._written = ""
        """Of the present key or name."""
        self._arguments = ""
        """Not given out yet."""
        self._is_object = False
        """Arguments are, and may be given out as they come."""
        self._seen: set[str] = set()
        """Roles whose value has begun."""

    @property
    def in_string(self) -> bool:
        return self._part in ("key", "value") and self._value.in_string

    def read(self, text: str, at: int) -> tuple[int, str]:
        out = ""
        while not self.done and not self.is_broken:
            before = (at, self._part)
            if self._part in ("key", "value"):
                at = self._read_value(text, at)
                out += self._given_out()
            else:
                at = self._punctuation(text, end_of(SPACE, text, at))
            if (at, self._part) == before:
                break
        if self.done and self.name is not None and "arguments" not in self._seen:
            self._seen.add("arguments")
            out += "{}"
        return at, out

    def _punctuation(self, text: str, at: int) -> int:
        char = text[at : at + 1]
        match self._part, char:
            case "begin", "{":
                self._part = "keys"
            case "keys", "}":
                self.done = True
            case "keys", ",":
                pass
            case "colon", ":":
                self._part = "before value"
            case "keys", '"':
                self._part, self._value, self._written = "key", JsonValue(), ""
                return at
            case "before value", char if char:
                self._part, self._value, self._written = "value", JsonValue(), ""
                self._role = "" if self._role in self._seen else self._role
                self._seen.add(self._role)
                self._is_object = char == "{"
                return at
            case _:
                return at
        return at + 1

    def _read_value(self, text: str, at: int) -> int:
        end = self._value.extent(text, at)
        piece = text[at:end]
        if self._part == "key" or self._role == "name":
            self._written += piece
        elif self._role == "arguments":
            self._arguments += piece
        if self._value.done:
            self._end_value()
        return end

    def _end_value(self) -> None:
        if self._part == "key":
            key = str(_decoded(self._written))
            self._part, self._role = "colon", self._roles.get(key, "")
            if self._is_strict and not self._role and not self.name and key not in _ASIDE:
                self.is_broken = True
            return
        self._part = "keys"
        if self._role == "name" and isinstance(name := _decoded(self._written), str):
            self.name = name
        elif self._role == "arguments" and not self._is_object:
            self._arguments = _as_object(self._arguments)

    def _given_out(self) -> str:
        """Arguments that may be shown: of an object at once, others when they are whole."""
        is_open = self._part == "value" and self._role == "arguments"
        if self.name is None or (is_open and not self._is_object):
            return ""
        out, self._arguments = self._arguments, ""
        return out


def _as_object(text: str) -> str:
    """The object that a string or null stands for, else `text`."""
    value = _decoded(text)
    if value is None:
        return "{}"
    return value if isinstance(value, str) and isinstance(_decoded(value), dict) else text


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ...
