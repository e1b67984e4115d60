"""Finds stop strings in text that arrives in pieces, wherever the pieces are cut.

Of several matches the one that ends first counts, so the outcome is the same as if the text had
come one character at a time.
"""

from collections.abc import Sequence


class StopMatcher:
    """Text goes in, text that cannot belong to a stop string any more comes out."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        if "" in stops:
            raise ValueError("stop: a stop string must not be empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found."""

    def feed(self, text: str) -> str:
        """The text to show now. After a match: nothing, ever."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = self._first_match(text)
        if found is not None:
            start, stop = found
            self._held, self.matched = "", stop
            return text[: start + len(stop) * self._include_stop]
        keep = self._num_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where which stop string begins; None when none is in it."""
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        return min(found)[1:] if found else None

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
