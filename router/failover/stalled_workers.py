"""Workers that new requests avoid while there are others, for requests stalled there. Pure."""

from collections.abc import Mapping

from protocol.ids import WorkerId
from router.failover.stall import LastHeard

MIN_STALLS = 3
"""One may be the request's own fault."""
AVOIDED_S = 15.0
"""After the last stall, unless it advances again: then it is tried again by one or two."""


class StalledWorkers:
    def __init__(self, *, silent_s: float) -> None:
        self._silent_s = silent_s
        self._stalls: dict[WorkerId, list[float]] = {}
        """When, the last ones."""
        self.avoided: frozenset[WorkerId] = frozenset()

    def note_stall(self, worker: WorkerId, *, now: float) -> None:
        self._stalls[worker] = [*self._stalls.get(worker, ())[1 - MIN_STALLS :], now]

    def update(self, workers: Mapping[WorkerId, LastHeard], *, now: float) -> None:
        """Those that are silent now, and those where several requests stalled."""
        self._stalls = {
            name: times
            for name, times in self._stalls.items()
            if name in workers and now - times[-1] < AVOIDED_S
        }
        several = {
            name
            for name, times in self._stalls.items()
            if len(times) >= MIN_STALLS and workers[name].advanced_at < times[-1]
        }
        silent = {
            name for name, worker in workers.items() if now - worker.heard_at > self._silent_s
        }
        self.avoided = frozenset(several | silent)
