"""All open connections of a router: a bound on them, and who goes when it is reached.

Connections that wait for their client, silent or in the middle of a head or a body, make room for
newcomers, the longest waiting first; those that are answered never do. When all are answered a few
more may connect, for probes alone: a router that is full is no reason to restart it.
"""

import logging
import time
from typing import Protocol

log = logging.getLogger("baton.http")
_SECONDS_BETWEEN_WARNINGS = 10.0
PROBE_PATHS = frozenset({b"/health", b"/ping", b"/ready", b"/metrics"})
_NUM_PROBES = 8
"""Beyond the bound: a kubelet, a supervisor and some scrapers at once."""


class OpenConnection(Protocol):
    def make_room(self) -> None:
        """Close, now: you let us wait the longest."""

    def note_drain(self) -> None:
        """Wait no longer for a next request than one that is on its way takes."""


class OpenConnections:
    """Not thread-safe: one event loop owns it."""

    def __init__(self, *, max_connections: int) -> None:
        self._max_connections = max_connections
        self._open: set[OpenConnection] = set()
        self._beyond: set[OpenConnection] = set()  # of the open, those for probes alone
        self._waited_for: dict[OpenConnection, None] = {}  # the longest waiting first
        self._warned_at = float("-inf")
        self.is_draining = False
        """Whether each answer that begins is the last on its connection."""

    def begin_drain(self) -> None:
        """From now on no connection outlives its next answer."""
        self.is_draining = True
        for connection in list(self._open):
            connection.note_drain()

    def admit(self, connection: OpenConnection) -> bool:
        """Whether there is room, perhaps made by another. If not, it must close at once."""
        if self._is_full:
            self._warn()
            slowest = next(iter(self._waited_for), None)
            if slowest is not None:
                self.forget(slowest)
                slowest.make_room()
            elif len(self._beyond) >= _NUM_PROBES:
                return False
        if self._is_full:
            self._beyond.add(connection)
        self._open.add(connection)
        self._waited_for[connection] = None
        return True

    def may_ask(self, connection: OpenConnection, path: bytes) -> bool:
        """Whether there is room for this request, or it is a probe's."""
        if not self._is_full:
            self._beyond.discard(connection)
        return connection not in self._beyond or path in PROBE_PATHS

    def note_request(self, connection: OpenConnection) -> None:
        """Its request is complete: the next word is ours."""
        self._waited_for.pop(connection, None)

    def note_answer(self, connection: OpenConnection) -> None:
        """The next word is the client's."""
        if connection in self._open:
            self._waited_for.setdefault(connection)

    def forget(self, connection: OpenConnection) -> None:
        self._open.discard(connection)
        self._beyond.discard(connection)
        self._waited_for.pop(connection, None)

    @property
    def _is_full(self) -> bool:
        return len(self._open) - len(self._beyond) >= self._max_connections

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = now
            remedy = "raise max_connections and `ulimit -n`, or add a router"
            extra = {"max_connections": self._max_connections, "remedy": remedy}
            log.warning("connections full; the idlest is closed", extra=extra)
