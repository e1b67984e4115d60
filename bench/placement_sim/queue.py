"""Who of the requests that no worker has room for is placed next."""

from collections import deque
from typing import Protocol

from bench.placement_sim.request import Journey


class JourneyQueue(Protocol):
    def must_wait(self, journey: Journey) -> bool:
        """Whether it would overtake somebody if it were placed now."""

    def add(self, journey: Journey, *, now: float) -> None:
        """It may be turned away instead, or somebody else for it."""

    def head(self, *, now: float) -> Journey | None: ...

    def release(self, journey: Journey, *, now: float) -> None:
        """The head was placed."""

    def note_ended(self, journey: Journey) -> None:
        """It has all its tokens."""


class FirstCome:
    """Whoever came first, without a bound."""

    def __init__(self) -> None:
        self._journeys: deque[Journey] = deque()

    def must_wait(self, journey: Journey) -> bool:
        return bool(self._journeys)

    def add(self, journey: Journey, *, now: float) -> None:
        self._journeys.append(journey)

    def head(self, *, now: float) -> Journey | None:
        return self._journeys[0] if self._journeys else None

    def release(self, journey: Journey, *, now: float) -> None:
        assert self._journeys.popleft() is journey

    def note_ended(self, journey: Journey) -> None:
        return
