"""Keeps the prefix index true: block events from Redis, snapshots at the start and after gaps.

Redis away means a degraded index, never a failed request; when it answers again every worker's
snapshot is read and the index is exact. Whatever takes longer is done in slices, between which the
event loop serves others.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from protocol.blocks import HASH_BYTES
from protocol.errors import StoreError
from protocol.ids import Epoch, WorkerId
from protocol.process.metrics import RouterMetrics
from protocol.store.workers import BlockEvent, Store
from router.prefix.holding import EARLY_WAIT_S
from router.prefix.prefix_index import PrefixIndex
from router.prefix.state import IndexState
from router.workers.registry import Registry

log = logging.getLogger("baton.index")

WAIT_S = 0.5
"""How long a read waits for an event; also the least time between two tries of a snapshot."""
SLICE_EVENTS = 100
SLICE_BYTES = 4096 * HASH_BYTES
"""Events applied at a stretch: less than a millisecond."""


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
    _num_refused: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.registry.listeners.append(self.reconcile)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
            except StoreError as error:
                self._lose(error)
                await self._sweep()
                await asyncio.sleep(self.wait_s)

    def reconcile(self) -> None:
        """Follow the workers of the moment; what others held is forgotten at once."""
        workers = self.registry.workers
        closed = {w.id for w in workers if w.registration.is_prefix_closed}
        self.index.follow_only_workers({w.id: w.epoch for w in workers}, closed=closed)
        self._show()

    async def _follow(self) -> None:
        """The stream's end is read before the snapshots, so that nothing falls between."""
        after = await self.store.last_event_id()
        self.store.contact.note()
        self.redis = "connected"
        self._asked_at.clear()
        while True:
            for worker, epoch in self.index.doubted():
                await self._read_snapshot(worker, epoch)
            await self._sweep()
            wait_s = min(self.wait_s, EARLY_WAIT_S) if self.index.is_waiting else self.wait_s
            after, events = await self.store.read_events(after, block_s=wait_s)
            await self._apply_events(events)
            self.index.give_up_waiting(now=self.clock())
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
        load = self.index.begin_snapshot(
            worker, epoch, sequence=snapshot.sequence, packed=snapshot.packed_hashes
        )
        if load is None:
            return
        await _in_slices(load.store_slices())
        if load.finish():
            self._asked_at.pop((worker, epoch), None)
        self._show()

    async def _apply_events(self, events: Iterable[BlockEvent]) -> None:
        """Stops for the event loop every SLICE_EVENTS or SLICE_BYTES."""
        num_events = num_bytes = 0
        for event in events:
            self.index.apply_event(
                event.worker,
                event.epoch,
                sequence=event.sequence,
                kind=event.kind,
                packed=event.packed_hashes,
                now=self.clock(),
            )
            num_events += 1
            num_bytes += len(event.packed_hashes)
            if num_events >= SLICE_EVENTS or num_bytes >= SLICE_BYTES:
                num_events = num_bytes = 0
                await asyncio.sleep(0)

    async def _sweep(self) -> None:
        """Blocks of workers that are gone leave the index."""
        while self.index.is_dirty:
            self.index.sweep_some()
            await asyncio.sleep(0)

    def _lose(self, error: StoreError) -> None:
        self.store.contact.note(error)
        self.redis = "lost"
        self.index.doubt_all()
        self._show()

    def _show(self) -> None:
        current = self.index.state
        for state in IndexState:
            self.metrics.index_state.labels(state=state).set(1 if state is current else 0)
        self.metrics.index_blocks.set(len(self.index))
        for worker in self.index.take_gaps():
            self.metrics.index_gaps.inc()
            remedy = "none, its snapshot is read now"
            log.warning("index gap", extra={"worker": worker, "remedy": remedy})
        self._show_refused()

    def _show_refused(self) -> None:
        num_refused = self.index.num_refused - self._num_refused
        if not num_refused:
            return
        if not self._num_refused:
            remedy = "raise index_blocks; until then some cached prefixes are not found"
            log.warning("index full", extra={"blocks": len(self.index), "remedy": remedy})
        self._num_refused += num_refused
        self.metrics.index_refused.inc(num_refused)


async def _in_slices(slices: Iterable[None]) -> None:
    """One a turn of the event loop."""
    for _ in slices:
        await asyncio.sleep(0)
