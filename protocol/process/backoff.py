"""How long to wait before a dead child is started again. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """0.1 s, doubling to 5 s: a crash costs little, a crash loop does not burn a core."""

    first_s: float = 0.1
    limit_s: float = 5.0
    healthy_s: float = 10.0
    """A child that lived this long starts over at `first_s`."""

    def delay_s(self, *, previous_s: float, lived_s: float) -> float:
        """Seconds to wait now; `previous_s` is what was waited last time, 0 if never."""
        if previous_s == 0 or lived_s >= self.healthy_s:
            return self.first_s
        return min(self.limit_s, 2 * previous_s)
