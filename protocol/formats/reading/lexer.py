"""Where the terminals of a state are in text that comes in pieces.

Holds back only what may still become one, and space before it. Of several terminals the one that
begins first counts; none of a state begins another (`terminals_of`).
"""

from collections.abc import Container
from dataclasses import dataclass

from protocol.formats.table import END, OTHER, FormatError, OutputFormat


@dataclass(frozen=True, slots=True)
class Found:
    start: int
    terminal: str


class Terminals:
    """Those of one state that are looked for in its text."""

    def __init__(self, texts: frozenset[str]) -> None:
        for text in texts:
            if any(other != text and other.startswith(text) for other in texts):
                raise FormatError(f"{text!r} begins another terminal of its state: {sorted(texts)}")
        self.texts = tuple(sorted(texts))
        self._longest = max(map(len, texts), default=0)

    def find(self, text: str, at: int = 0) -> Found | None:
        """The first in `text`."""
        found = [(start, one) for one in self.texts if (start := text.find(one, at)) >= 0]
        return Found(*min(found)) if found else None

    def at(self, text: str, at: int) -> str | None:
        """The one that stands there whole."""
        return next((one for one in self.texts if text.startswith(one, at)), None)

    def may_begin(self, text: str, at: int) -> bool:
        """Whether all of `text` from there on is the beginning of one."""
        return any(one.startswith(text[at:]) for one in self.texts)

    def held_from(self, text: str, final: bool) -> int:
        """Where the end of `text` begins that may still become one; `final`: none may."""
        if final:
            return len(text)
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if self.may_begin(text, start):
                return start
        return len(text)


def terminals_of(of: OutputFormat, tokens: Container[str]) -> dict[str, Terminals]:
    """By state, those of its rows that are not tokens of their own."""
    texts: dict[str, set[str]] = {state: set() for state in of.states}
    for state, terminal in of.rows:
        if terminal not in (END, OTHER) and terminal not in tokens:
            texts[state].add(terminal)
    return {state: Terminals(frozenset(found)) for state, found in texts.items()}
