"""Decode workers that are not here and may be soon: they load, or left a moment ago. Pure."""

from collections.abc import Iterable
from math import inf

from protocol.ids import WorkerId
from protocol.store.workers import ComingWorker

MOST_MODELS = 1_000
"""Of which it is known when their last worker left."""


class ExpectedWorkers:
    """By the name of their model, for a revision is known of a worker that has loaded."""

    def __init__(self) -> None:
        self._coming: dict[WorkerId, str] = {}
        self._left_at: dict[str, float] = {}

    def note_coming(self, coming: Iterable[ComingWorker]) -> bool:
        """All that load now; whether that is news."""
        before, self._coming = (
            self._coming,
            {one.worker: one.model for one in coming if one.role == "decode"},
        )
        return self._coming != before

    def note_left(self, model: str, *, now: float) -> None:
        self._left_at.pop(model, None)
        self._left_at[model] = now
        while len(self._left_at) > MOST_MODELS:
            del self._left_at[next(iter(self._left_at))]

    def is_coming(self, model: str | None) -> bool:
        """One of that model loads, or one of which that is not known yet; None: of any model."""
        if model is None:
            return bool(self._coming)
        return any(each in ("", model) for each in self._coming.values())

    @property
    def models(self) -> frozenset[str]:
        """Of the workers that load; "" for one of which that is not known yet."""
        return frozenset(self._coming.values())

    def left_at(self, model: str | None) -> float:
        """When the last of that model was removed."""
        if model is None:
            return max(self._left_at.values(), default=-inf)
        return self._left_at.get(model, -inf)
