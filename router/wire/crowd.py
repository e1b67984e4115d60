"""All open connections of a router: a bound on them, and who goes when it is reached.

Connections that wait for their client, silent or in the middle of a head or a body, make room for
newcomers, the longest waiting first; those that are answered never do.
"""

import logging
import time
from typing import Protocol

log = logging.getLogger("baton.http")
_SECONDS_BETWEEN_WARNINGS = 10.0


class Guest(Protocol):
    def make_room(self) -> None:
        """Close, now: you let us wait the longest."""


class Crowd:
    """Not thread-safe: one event loop owns it."""

    def __init__(self, *, max_connections: int) -> None:
        self._max_connections = max_connections
        self._inside: set[Guest] = set()
        self._waited_for: dict[Guest, None] = {}  # the longest waiting first
        self._warned_at = float("-inf")

    def enter(self, guest: Guest) -> bool:
        """Whether there is room, perhaps made by another. If not, the guest must leave at once."""
        if len(self._inside) >= self._max_connections:
            self._warn()
            slowest = next(iter(self._waited_for), None)
            if slowest is None:
                return False
            self.leave(slowest)
            slowest.make_room()
        self._inside.add(guest)
        self._waited_for[guest] = None
        return True

    def is_served(self, guest: Guest) -> None:
        """Its request is complete: the next word is ours."""
        self._waited_for.pop(guest, None)

    def is_waited_for(self, guest: Guest) -> None:
        """The next word is the client's."""
        if guest in self._inside:
            self._waited_for.setdefault(guest)

    def leave(self, guest: Guest) -> None:
        self._inside.discard(guest)
        self._waited_for.pop(guest, None)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            remedy = "raise max_connections and `ulimit -n`, or add a router"
            extra = {"max_connections": self._max_connections, "remedy": remedy}
            log.warning("connections full; the idlest is closed", extra=extra)
