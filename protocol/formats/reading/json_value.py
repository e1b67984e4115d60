"""Where a JSON value ends whose text comes in pieces.

What stands in its strings and between its brackets is not checked.
"""

import re

SPACE = re.compile(r"[ \t\r\n]*")
_IN_STRING = re.compile(r'[^"\\]*')
_OUTSIDE = re.compile(r"[\w \t\r\n+\-.:,]*")
_SCALAR = re.compile(r"[\w+\-.]*")


class JsonValue:
    """How far one value goes. Begins with its first character, which is no space."""

    def __init__(self) -> None:
        self.done = False
        self.in_string = False
        self.is_scalar = False
        self._escaped = False
        self._depth = 0
        self._begun = False

    def extent(self, text: str, at: int) -> int:
        """Where in `text` the value ends, of which more begins at `at`. Unless `done`, what is
        left, if any, cannot be part of it."""
        while at < len(text) and not self.done:
            if self._escaped:
                self._escaped = False
                at += 1
            elif self.in_string:
                at = self._string(text, at)
            elif self.is_scalar or (not self._begun and text[at] not in '"{['):
                return self._scalar(text, at)
            else:
                before, at = at, self._structure(text, at)
                if at == before:
                    break
        return at

    def _string(self, text: str, at: int) -> int:
        at = end_of(_IN_STRING, text, at)
        if at == len(text):
            return at
        if text[at] == "\\":
            self._escaped = True
        else:
            self.in_string = False
            self.done = self._depth == 0
        return at + 1

    def _scalar(self, text: str, at: int) -> int:
        end = end_of(_SCALAR, text, at)
        self._begun = self.is_scalar = self.is_scalar or end > at
        self.done = self.is_scalar and end < len(text)
        return end

    def _structure(self, text: str, at: int) -> int:
        """`at` itself when something stands there that no JSON has."""
        at = end_of(_OUTSIDE, text, at) if self._begun else at
        if at == len(text):
            return at
        char = text[at]
        if char == '"':
            self.in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth == 0
        else:
            return at
        self._begun = True
        return at + 1


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where what matches at `at` ends; for patterns that may match nothing."""
    found = pattern.match(text, at)
    return at if found is None else found.end()
