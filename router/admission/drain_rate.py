"""How fast a queue gets shorter, in tokens per second, measured while somebody waits. Pure."""

import math

WINDOW_S = 10.0
"""What is so long ago counts a third."""
KNOWN_AFTER_S = 0.5
"""Of waiting, that a rate is made of at least."""


class DrainRate:
    def __init__(self) -> None:
        self._tokens = 0.0
        self._busy_s = 0.0
        self._since: float | None = None
        """Until when it is counted; None while nobody waits."""

    def note_waiting(self, waits: bool, *, now: float) -> None:
        """Whether somebody waits from now on."""
        self._count_until(now)
        self._since = now if waits else None

    def note_turn(self, num_tokens: int, *, now: float) -> None:
        """One that waited got its worker."""
        self._count_until(now)
        self._tokens += num_tokens

    def seconds_for(self, num_tokens: float, *, now: float) -> float | None:
        """Until so many tokens had their turn; None while no rate is known."""
        self._count_until(now)
        if self._busy_s < KNOWN_AFTER_S or self._tokens <= 0:
            return None
        return num_tokens * self._busy_s / self._tokens

    def _count_until(self, now: float) -> None:
        if self._since is None or now <= self._since:
            return
        passed_s, self._since = now - self._since, now
        kept = math.exp(-passed_s / WINDOW_S)
        self._tokens *= kept
        self._busy_s = self._busy_s * kept + WINDOW_S * (1 - kept)
