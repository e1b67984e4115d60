"""Choices of one prompt, each a request of its own: where the first one's prompt comes to be, so
that the others go on from it there. Awaits nothing itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol.ids import Epoch, WorkerId
from protocol.messages import OfAttempt


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """A decode worker that was told of the first choice, before it is told of another."""

    worker: WorkerId
    epoch: Epoch
    origin: OfAttempt
    expected_first_s: float
    """Until the stream of the first should run, as predicted when it was placed."""


class Leader(Protocol):
    @property
    def fork_point(self) -> ForkPoint | None:
        """None: no decode worker has it, or not yet."""


class ForkFamily:
    """Used by one thread, but made by any. Whoever leads it says so before any other waits."""

    def __init__(self) -> None:
        self.leader: Leader | None = None
        self._is_over = False
        self._waiting: list[Callable[[], None]] = []

    def lead(self, leader: Leader) -> None:
        self.leader, self._is_over = leader, False

    def note_changed(self) -> None:
        """The leader may have a fork point now."""
        if self._waiting and self.fork_point is not None:
            self._wake()

    def leave(self) -> None:
        """The leader has ended, however it did: nobody waits for it any more."""
        self.leader, self._is_over = None, True
        self._wake()

    @property
    def fork_point(self) -> ForkPoint | None:
        return None if self.leader is None else self.leader.fork_point

    @property
    def is_undecided(self) -> bool:
        """There is no fork point, and may be one."""
        return not self._is_over and self.fork_point is None

    def call_when_decided(self, call: Callable[[], None]) -> None:
        """Once, when there is a fork point or will be none."""
        self._waiting.append(call)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
