"""All open connections of a router: a bound on them, and who goes when it is reached.

Connections that wait for their client, silent or in the middle of a head or a body, make room for
newcomers, the longest waiting first; those that are answered never do.
"""

import logging
import time
from typing import Protocol

log = logging.getLogger("baton.http")
_SECONDS_BETWEEN_WARNINGS = 10.0


class OpenConnection(Protocol):
    def make_room(self) -> None:
        """Close, now: you let us wait the longest."""


class OpenConnections:
    """Not thread-safe: one event loop owns it."""

    def __init__(self, *, max_connections: int) -> None:
        self._max_connections = max_connections
        self._open: set[OpenConnection] = set()
        self._waited_for: dict[OpenConnection, None] = {}  # the longest waiting first
        self._warned_at = float("-inf")

    def admit(self, connection: OpenConnection) -> bool:
        """Whether there is room, perhaps made by another. If not, it must close at once."""
        if len(self._open) >= self._max_connections:
            self._warn()
            slowest = next(iter(self._waited_for), None)
            if slowest is None:
                return False
            self.forget(slowest)
            slowest.make_room()
        self._open.add(connection)
        self._waited_for[connection] = None
        return True

    def note_request(self, connection: OpenConnection) -> None:
        """Its request is complete: the next word is ours."""
        self._waited_for.pop(connection, None)

    def note_answer(self, connection: OpenConnection) -> None:
        """The next word is the client's."""
        if connection in self._open:
            self._waited_for.setdefault(connection)

    def forget(self, connection: OpenConnection) -> None:
        self._open.discard(connection)
        self._waited_for.pop(connection, None)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            remedy = "raise max_connections and `ulimit -n`, or add a router"
            extra = {"max_connections": self._max_connections, "remedy": remedy}
            log.warning("connections full; the idlest is closed", extra=extra)
