"""Keeps the prefix index true: block events from Redis, snapshots at the start and after gaps.

Redis away means a degraded index, never a failed request; when it answers again every worker's
snapshot is read and the index is exact.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from protocol.errors import StoreError
from protocol.ids import Epoch, WorkerId
from protocol.process.metrics import RouterMetrics
from protocol.store.workers import BlockEvent, Store
from router.placement.prefix_index import IndexState, PrefixIndex
from router.workers.registry import Registry

log = logging.getLogger("baton.index")

WAIT_S = 0.5
"""How long a read waits for an event; also the least time between two tries of a snapshot."""


@dataclass(slots=True, kw_only=True)
class IndexFeed:
    """The only writer of the index, other than dispatch's speculative entries."""

    store: Store
    index: PrefixIndex
    registry: Registry
    metrics: RouterMetrics
    wait_s: float = WAIT_S
    clock: Callable[[], float] = time.monotonic
    redis: Literal["connected", "lost"] = field(default="lost", init=False)
    _asked_at: dict[tuple[WorkerId, Epoch], float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.registry.listeners.append(self.reconcile)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
            except StoreError as error:
                self._lose(error)
                await asyncio.sleep(self.wait_s)

    def reconcile(self) -> None:
        """Follow the workers of the moment; what others held is forgotten at once."""
        self.index.follow_only_workers({w.id: w.epoch for w in self.registry.workers})
        self._show()

    async def _follow(self) -> None:
        """The stream's end is read before the snapshots, so that nothing falls between."""
        after = await self.store.last_event_id()
        if self.redis == "lost":
            log.info("Redis connected")
        self.redis = "connected"
        self._asked_at.clear()
        while True:
            for worker, epoch in self.index.doubted():
                await self._read_snapshot(worker, epoch)
            after, events = await self.store.read_events(after, block_s=self.wait_s)
            for event in events:
                self._apply(event)
            self._show()

    async def _read_snapshot(self, worker: WorkerId, epoch: Epoch) -> None:
        """Every worker writes its set when it starts, and again when Redis has lost it."""
        now = self.clock()
        asked_at = self._asked_at.get((worker, epoch))
        if asked_at is not None and now < asked_at + self.wait_s:
            return
        self._asked_at[worker, epoch] = now
        snapshot = await self.store.snapshot(worker, epoch)
        if snapshot is None:
            return
        if self.index.load_snapshot(
            worker, epoch, sequence=snapshot.sequence, hashes=snapshot.hashes
        ):
            del self._asked_at[worker, epoch]
        self._show()

    def _apply(self, event: BlockEvent) -> None:
        before = self.index.states.get(event.worker)
        after = self.index.apply_event(
            event.worker, event.epoch, sequence=event.sequence, kind=event.kind, hashes=event.hashes
        )
        if before is IndexState.EXACT and after is IndexState.DEGRADED:
            self.metrics.index_gaps.inc()
            seen = {"worker": event.worker, "sequence": event.sequence}
            log.warning("index gap", extra={**seen, "remedy": "none, its snapshot is read now"})

    def _lose(self, error: StoreError) -> None:
        if self.redis == "connected":
            remedy = "bring Redis back; until then requests are placed by what is known"
            log.warning("Redis lost", extra={"why": str(error), "remedy": remedy})
        self.redis = "lost"
        self.index.doubt_all()
        self._show()

    def _show(self) -> None:
        for state in IndexState:
            gauge = self.metrics.index_state.labels(state=state)
            gauge.set(1 if state is self.index.state else 0)
        self.metrics.index_blocks.set(len(self.index))
