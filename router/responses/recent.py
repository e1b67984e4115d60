"""What was answered lately, in this process's memory alone: clients that leave `store` to the
server refer to items of answers as if these had been kept.

Answers, never what they were made from. Not thread-safe: one event loop owns it.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

TTL_S = 3600.0
"""A tool may take as long; a person who comes back later has a client that sends texts."""
MAX_BYTES = 16 << 20
OVERHEAD_BYTES = 512
"""Counted of each besides its own: what Python needs for it and its name."""
LARGEST_SHARE = 8
"""One answer has at most one part in so many of its owner's bytes."""


class RecentAnswers:
    def __init__(self, *, max_bytes: int) -> None:
        """`max_bytes`: of each owner, whose oldest answers make room."""
        self._max_bytes = max_bytes
        self._answers: defaultdict[str, OrderedDict[str, tuple[float, bytes]]]
        self._answers = defaultdict(OrderedDict)
        self._num_bytes: defaultdict[str, int] = defaultdict(int)

    def remember(self, owner: str, ident: str, output: bytes, *, now: float) -> None:
        """`output`: JSON of the answer's items. `now`: seconds of a clock that never goes back."""
        if _size(output) > self._max_bytes // LARGEST_SHARE:
            return
        self._answers[owner][ident] = (now, output)
        self._num_bytes[owner] += _size(output)
        self._forget(owner, now)

    def find(self, owner: str, idents: Iterable[str], *, now: float) -> dict[str, bytes]:
        """Those of `idents` that are remembered."""
        self._forget(owner, now)
        answers = self._answers[owner]
        return {ident: answers[ident][1] for ident in idents if ident in answers}

    def _forget(self, owner: str, now: float) -> None:
        answers = self._answers[owner]
        while answers:
            ident, (since, output) = next(iter(answers.items()))
            if now - since < TTL_S and self._num_bytes[owner] <= self._max_bytes:
                return
            del answers[ident]
            self._num_bytes[owner] -= _size(output)


def _size(output: bytes) -> int:
    return OVERHEAD_BYTES + len(output)
