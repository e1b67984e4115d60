"""Whether Redis answers this process, said in its log when that changes.

A process may start before Redis, or while it is away: then it is told again every `REMIND_S`.
"""

import logging
import time
from collections.abc import Callable

from protocol.errors import StoreError

REMIND_S = 30.0
"""Seldom enough to be read by, often enough to be the last thing that a log says."""

_START = "start Redis, or correct redis and its password; this process waits as long as it takes"
_BRING_BACK = "bring Redis back; until then nobody finds workers that it does not know yet"

log = logging.getLogger(__name__)


class Contact:
    """For one thread. Who asks Redis notes what came of it."""

    def __init__(self, place: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`place`: where Redis is, for a person."""
        self._place = place
        self._clock = clock
        self.has_answered = False
        self._remind_at = 0.0
        self.is_up = True
        """It answered when it was asked last, or nobody has asked."""

    def waiting(self) -> str | None:
        """What the process waits for; None once Redis has answered, or while nobody has asked."""
        return None if self.is_up or self.has_answered else f"waits for Redis at {self._place}"

    def note(self, error: StoreError | None = None) -> None:
        """What came of asking; None: an answer."""
        if error is None:
            if not (self.is_up and self.has_answered):
                log.info("Redis connected", extra={"place": self._place})
            self.has_answered = self.is_up = True
        elif not self.has_answered:
            self.is_up = False
            self._remind(error)
        elif self.is_up:
            self.is_up = False
            log.warning("Redis lost", extra={"why": str(error), "remedy": _BRING_BACK})

    def _remind(self, error: StoreError) -> None:
        now = self._clock()
        if now >= self._remind_at:
            self._remind_at = now + REMIND_S
            told = {"why": str(error), "remedy": _START}
            log.warning("waits for Redis at %s", self._place, extra=told)
