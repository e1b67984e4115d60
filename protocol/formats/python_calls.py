"""Calls as Python writes them: formats, and a reader of lists whose text comes in pieces.

A call is given out when it is whole: keyword arguments, all of them literals.
"""

import ast
import json
from dataclasses import dataclass

from protocol.formats.table import CONTENT, END, OTHER, SHOWN, START, Format, Row, Takes, Written

MAX_CALL = 1 << 16
"""Characters of one call; a longer one is none."""
_PAIRS = {")": "(", "]": "[", "}": "{"}
_LIST = Written(begin="[", call="{name}({keywords})", between=", ", end="]")
_STATES = {**SHOWN, "open": Takes.SPACE, "list": Takes.LITERALS, "after": Takes.SPACE}
_ROWS = {
    ("open", "["): Row("list"),
    ("open", OTHER): Row(CONTENT),
    ("list", END): Row("after"),
    ("after", OTHER): Row(CONTENT),
}
PYTHONIC = Format(
    name="pythonic",
    states=_STATES,
    rows={
        **_ROWS,
        (START, "["): Row("list"),
        (CONTENT, "<|python_start|>"): Row("open"),
        ("after", "<|python_end|>"): Row(CONTENT),
    },
    written=_LIST,
    only_known=True,
)
"""Llama 4 and 3.2: a list that begins the answer."""

LFM2 = Format(
    name="lfm2",
    states=_STATES,
    rows={
        **_ROWS,
        (CONTENT, "<|tool_call_start|>"): Row("open"),
        ("after", "<|tool_call_end|>"): Row(CONTENT),
        ("open", "<|tool_call_end|>"): Row(CONTENT),
    },
    written=Written(
        begin="<|tool_call_start|>[", call=_LIST.call, between=", ", end="]<|tool_call_end|>"
    ),
)

OLMO3 = Format(
    name="olmo3",
    states=_STATES,
    rows={
        (CONTENT, "<function_calls>"): Row("list"),
        ("list", END): Row("after"),
        ("list", "</function_calls>"): Row(CONTENT),
        ("after", "</function_calls>"): Row(CONTENT),
        ("after", OTHER): Row(CONTENT),
    },
    written=Written(
        begin="<function_calls>", call=_LIST.call, between="\n", end="</function_calls>"
    ),
)


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
        if not self._open and not (char.isalnum() or char in "_.-" or (self.text and char == "(")):
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
        self.text += char
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
