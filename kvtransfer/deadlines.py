"""Deadlines of many things at once, as values: no clock is read here.

Renewals come out of order, so every look scans all entries; thousands are fine, millions are not.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

RENEWALS_PER_LEASE = 3
"""A holder renews this often within one lease, so two lost renewals in a row end nothing."""


def renew_every_s(lease_ttl_s: float) -> float:
    return lease_ttl_s / RENEWALS_PER_LEASE


class Deadlines(Generic[K]):
    """When each of a set of things runs out, on one process's own monotonic clock, in seconds.

    What crosses a process is always remaining time: the receiver adds it to its own `now_s`.
    """

    def __init__(self) -> None:
        self._ends: dict[K, float] = {}

    def set(self, key: K, *, now_s: float, remaining_s: float) -> None:
        """Start the term of `key`, replacing the one it has."""
        self._ends[key] = now_s + remaining_s

    def renew(self, key: K, *, now_s: float, remaining_s: float) -> bool:
        """Extend a running term; a renewal never shortens one. False if `key` has none."""
        end = self._ends.get(key)
        if end is None or end <= now_s:
            return False
        self._ends[key] = max(end, now_s + remaining_s)
        return True

    def drop(self, key: K) -> None:
        self._ends.pop(key, None)

    def expired(self, now_s: float) -> list[K]:
        """Everything whose term is over, without forgetting it: the caller drops what it ends."""
        return [key for key, end in self._ends.items() if end <= now_s]

    def next_in_s(self, now_s: float) -> float | None:
        """Seconds until the next term ends, 0 if one has; None when nothing runs."""
        if not self._ends:
            return None
        return max(0.0, min(self._ends.values()) - now_s)
