"""Looks at all open requests a few times a second: who waits for a worker that stands still.

One look at all, instead of a timer a token: of a stream that runs it is one subtraction. While this
process itself was held up nothing was heard from anybody, and nobody is blamed for that.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Protocol

from protocol.ids import WorkerId
from router.failover.stall import LastHeard, StallLimits, Wait, find_stall
from router.failover.stalled_workers import StalledWorkers
from router.workers.worker import KnownWorker

PERIOD_S = 0.25
HELD_UP_S = 1.0
"""Between two looks: this process did not run, or hardly."""


class WatchedRequest(Protocol):
    @property
    def silent_since(self) -> float:
        """When a worker last said something that it waited for; inf while no worker has it."""

    def find_wait(self) -> Wait | None:
        """None while it waits for no worker."""

    def stall(self, why: str, wait: Wait, *, now: float) -> None:
        """Its attempt comes to nothing."""


class Watchdog:
    def __init__(
        self,
        *,
        requests: Callable[[], Iterable[WatchedRequest]],
        workers: Mapping[WorkerId, KnownWorker],
        limits: StallLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`workers`, and what `requests` gives, as they come and go."""
        self._requests = requests
        self._workers = workers
        self._limits = limits
        self._clock = clock
        self._looked_at, self._awake_since = clock(), -inf
        self._stalled = StalledWorkers(silent_s=limits.silent_s)

    @property
    def avoided(self) -> frozenset[WorkerId]:
        """Workers that new requests should not go to while there are others."""
        return self._stalled.avoided

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            self.look(now=self._clock())

    def look(self, *, now: float) -> None:
        if now - self._looked_at > HELD_UP_S:
            self._awake_since = now
        self._looked_at = now
        soonest = min(self._limits.silent_s, self._limits.first_token_s, self._limits.next_token_s)
        late = [one for one in self._requests() if now - one.silent_since > soonest]
        for request in late:
            self._look_at(request, now)
        heard = {name: self._last_heard(one) for name, one in self._linked()}
        self._stalled.update(heard, now=now)

    def _look_at(self, request: WatchedRequest, now: float) -> None:
        wait = request.find_wait()
        worker = None if wait is None else self._workers.get(wait.worker)
        if wait is None or worker is None or now - self._awake_since < self._limits.silent_s:
            return
        why = find_stall(wait, self._last_heard(worker), limits=self._limits, now=now)
        if why is not None and self._has_other(worker):
            self._stalled.note_stall(wait.worker, now=now)
            request.stall(why, wait, now=now)

    def _linked(self) -> list[tuple[WorkerId, KnownWorker]]:
        return [(name, one) for name, one in self._workers.items() if one.is_ready]

    def _last_heard(self, worker: KnownWorker) -> LastHeard:
        """Nobody was silent before this process could hear."""
        return LastHeard(
            heard_at=max(worker.heard_at, self._awake_since),
            advanced_at=max(worker.advanced_at, self._awake_since),
        )

    def _has_other(self, worker: KnownWorker) -> bool:
        """Where there is nobody else of its version, waiting is all that is left. A decode worker
        can prefill."""
        return any(
            one is not worker
            and name not in self.avoided
            and one.role in ("decode", worker.role)
            and one.serves(worker.version)
            for name, one in self._linked()
        )
