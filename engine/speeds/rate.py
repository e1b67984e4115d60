"""An amount over the seconds that it took, smoothed."""

DECAY = 0.9
"""Weight of the past after one more step: a change of load shows within some twenty steps."""


class Rate:
    """A sum over a sum, so that a large measurement weighs more than a small one. One thread
    adds, any may read."""

    def __init__(self) -> None:
        self.per_s = 0.0
        """0 until measured."""
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, *, seconds: float) -> None:
        if seconds <= 0:
            return
        self._amount = DECAY * self._amount + amount
        self._seconds = DECAY * self._seconds + seconds
        self.per_s = self._amount / self._seconds
