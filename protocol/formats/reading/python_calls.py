"""Calls as Python writes them, whose text comes in pieces.

A call is given out when it is whole: keyword arguments, all of them literals.
"""

import ast
import json
from dataclasses import dataclass

MAX_CALL = 1 << 16
"""Characters of one call; a longer one is none."""
_IN_QUOTES = {"\n": "\\n", "\r": "\\r"}
"""Line breaks within a string, which models leave as they are."""
_PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, slots=True)
class PythonCall:
    name: str
    arguments: str
    """JSON."""


class PythonCalls:
    """Calls between commas or line breaks, until a bracket closes that none has opened."""

    def __init__(self) -> None:
        self.done = False
        self.name = ""
        """Of the present call, once its arguments begin."""
        self.text = ""
        """Of the present call."""
        self.is_wrong = False
        """The last call was none, after all."""
        self._open = ""
        """Brackets."""
        self._quote = ""
        self._is_escaped = False

    def read(self, text: str, at: int) -> tuple[int, PythonCall | None]:
        """Where what belongs to it ends, after a call's name or a call at most. Unless
        something was read, what is left, if any, cannot be part of it."""
        while at < len(text) and not self.done:
            char = text[at]
            if not self.text and char in " \t\r\n,]":
                self.done = char == "]"
            elif not self._takes(char) or len(self.text) > MAX_CALL:
                break
            at += 1
            if self.text and not self._open and self.name:
                return at, self._call()
            if self.name and self.text[-1] == "(" and len(self._open) == 1:
                break  # the name is known now
        return at, None

    def _takes(self, char: str) -> bool:
        """Whether it goes on a call."""
        goes_on = char.isalnum() or char in "_.-(" if self.text else char.isalpha() or char == "_"
        if not self._open and not goes_on:
            return False
        if self._is_escaped:
            self._is_escaped = False
        elif self._quote:
            self._is_escaped = char == "\\"
            self._quote = "" if char == self._quote else self._quote
        elif char in "'\"":
            self._quote = char
        elif char in "([{":
            self.name = self.name or self.text
            self._open += char
        elif char in _PAIRS:
            if not self._open.endswith(_PAIRS[char]):
                return False
            self._open = self._open[:-1]
        self.text += _IN_QUOTES.get(char, char) if self._quote else char
        return True

    @property
    def in_string(self) -> bool:
        return bool(self.text)

    def _call(self) -> PythonCall | None:
        call = read_call(self.name, self.text)
        self.name = self.text = ""
        self.is_wrong = call is None
        return call


def read_call(name: str, text: str) -> PythonCall | None:
    """Of `name(key=literal, ...)`; None if it is something else. JSON's words are literals too."""
    try:
        call = ast.parse(f"f{text[len(name) :]}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        given = {one.arg: ast.literal_eval(_JsonWords().visit(one.value)) for one in call.keywords}
        if None in given:
            return None
        arguments = json.dumps(given, ensure_ascii=False, allow_nan=False)
        whole = arguments.encode("utf-16", "surrogatepass").decode("utf-16")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return PythonCall(name, whole)


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        words = {"true": True, "false": False, "null": None}
        return ast.Constant(words[node.id]) if node.id in words else node
