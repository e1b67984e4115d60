"""Holds back the end of a fetch until every chunk begun before it is here.

Lanes keep no order between them: chunks are numbered, a finish names the last begun before it.
"""

from collections import deque
from typing import Final

from kvtransfer.messages import Finish
from protocol.errors import WireError

MAX_AHEAD: Final = 1 << 16
"""Chunks ended before an earlier one, and finishes that wait: more than of any honest lanes."""


class ChunkOrder:
    def __init__(self) -> None:
        self._num_ended = 0
        """All chunks up to this number have ended."""
        self._ahead: set[int] = set()
        """And these beyond it."""
        self._waiting: deque[tuple[int, Finish]] = deque()

    def end_chunk(self, number: int) -> list[Finish]:
        """The finishes that waited for this chunk. Raises WireError when it has ended before."""
        if number <= self._num_ended or number in self._ahead:
            raise WireError(f"chunk {number} came twice")
        self._ahead.add(number)
        while self._num_ended + 1 in self._ahead:
            self._num_ended += 1
            self._ahead.remove(self._num_ended)
        self._check()
        return self._due()

    def add_finish(self, message: Finish, *, after: int) -> list[Finish]:
        """A finish has come that was said after chunk `after`; those that are due now."""
        self._waiting.append((after, message))
        self._check()
        return self._due()

    def _due(self) -> list[Finish]:
        due = [message for after, message in self._waiting if after <= self._num_ended]
        if due:
            self._waiting = deque(x for x in self._waiting if x[0] > self._num_ended)
        return due

    def _check(self) -> None:
        if len(self._ahead) > MAX_AHEAD or len(self._waiting) > MAX_AHEAD:
            raise WireError(f"more than {MAX_AHEAD} chunks out of order")
