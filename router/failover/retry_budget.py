"""How many attempts a router may repeat: a bound on the load that failures add to a fleet.

A bucket of retries. It holds as many as requests are open, so that the loss of any worker is made
good at once, whatever it had; what is taken comes back at a share of the requests that come, and at
a tenth of the open ones a second, for streams outlive many arrivals. Where every attempt fails, the
fleet is asked for little more than it would be without retries. Pure.
"""

from dataclasses import dataclass

SHARE = 0.2
"""Retries a request that comes: the fifth of load that an operator keeps free for accidents."""
OPEN_SHARE_PER_S = 0.1
"""Of the open requests, retries a second: all of them again in 10 s, in which a worker restarts."""
MIN_RETRIES = 16.0
"""A router with few requests loses all of them with one worker, and again with the next."""


@dataclass(slots=True, kw_only=True)
class RetryBudget:
    share: float = SHARE
    _spent: float = 0.0
    _at: float = 0.0
    """When `_spent` was true."""

    def note_begun(self) -> None:
        """A request has come."""
        self._spent = max(0.0, self._spent - self.share)

    def take_retry(self, *, num_open: int, now: float) -> bool:
        """False: there is none left. `num_open`: requests open now, this one among them."""
        most = max(MIN_RETRIES, float(num_open))
        refilled = max(0.0, now - self._at) * OPEN_SHARE_PER_S * most
        self._spent, self._at = max(0.0, self._spent - refilled), now
        if self._spent + 1.0 > most:
            return False
        self._spent += 1.0
        return True
