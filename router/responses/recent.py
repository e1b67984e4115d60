"""What was answered lately, in this process's memory alone: clients that leave `store` to the
server refer to items of answers as if these had been kept.

Answers, never what they were made from. Not thread-safe: one event loop owns it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

TTL_S = 3600.0
"""A tool may take as long; a person who comes back later has a client that sends texts."""
MAX_BYTES = 16 << 20
OVERHEAD_BYTES = 512
"""Counted of each besides its own: what Python needs for it and its name."""
LARGEST_SHARE = 8
"""One answer has at most one part in so many of its owner's bytes."""


_OfOwner = OrderedDict[str, tuple[float, bytes]]
"""When it was answered and what, by its name."""


class RecentAnswers:
    def __init__(self, *, max_bytes: int, num_owners: Callable[[], int]) -> None:
        """`max_bytes`: of all together, of which each owner of the moment has an equal share. The
        owner's oldest make room, and then those of whoever has been silent for longest."""
        self._max_bytes = max_bytes
        self._num_owners = num_owners
        self._answers: OrderedDict[str, _OfOwner] = OrderedDict()
        """By owner, who was answered last at the end."""
        self._bytes_of: Counter[str] = Counter()
        self._num_bytes = 0

    def remember(self, owner: str, ident: str, output: bytes, *, now: float) -> None:
        """`output`: JSON of the answer's items. `now`: seconds of a clock that never goes back."""
        if _size(output) > self._share // LARGEST_SHARE:
            return
        answers = self._answers.setdefault(owner, OrderedDict())
        if ident in answers:
            self._count(owner, -_size(answers.pop(ident)[1]))
        answers[ident] = (now, output)
        self._answers.move_to_end(owner)
        self._count(owner, _size(output))
        self._forget(owner, now)
        while self._num_bytes > self._max_bytes:
            self._forget_oldest(next(iter(self._answers)))

    def find(self, owner: str, idents: Iterable[str], *, now: float) -> dict[str, bytes]:
        """Those of `idents` that are remembered."""
        self._forget(owner, now)
        answers = self._answers.get(owner, _OfOwner())
        return {ident: answers[ident][1] for ident in idents if ident in answers}

    @property
    def _share(self) -> int:
        return self._max_bytes // self._num_owners()

    def _forget(self, owner: str, now: float) -> None:
        while owner in self._answers:
            since, _ = next(iter(self._answers[owner].values()))
            if now - since < TTL_S and self._bytes_of[owner] <= self._share:
                return
            self._forget_oldest(owner)

    def _forget_oldest(self, owner: str) -> None:
        _, (_, output) = self._answers[owner].popitem(last=False)
        self._count(owner, -_size(output))
        if not self._answers[owner]:
            del self._answers[owner], self._bytes_of[owner]

    def _count(self, owner: str, num_bytes: int) -> None:
        self._bytes_of[owner] += num_bytes
        self._num_bytes += num_bytes


def _size(output: bytes) -> int:
    return OVERHEAD_BYTES + len(output)
