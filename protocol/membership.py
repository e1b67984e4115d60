"""A worker's presence in Redis, and how a router watches for workers.

`Membership` registers one worker every `interval_s`, publishes what its prefix cache gains and
loses, and repairs what Redis lost: when Redis was away events wait, at most `max_waiting_hashes`
of them; when it came back empty, or too much waited, the whole set is rewritten. Redis away is a
log line and a gauge, never an error: workers that routers know are served on through their links.

`watch_workers` yields what Redis knows; a worker missing from it is not dead, its link decides.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import msgspec

from protocol.blocks import BlockChange
from protocol.errors import StoreError
from protocol.ids import BlockHash, Epoch, WorkerId
from protocol.messages import Beat, Registration
from protocol.store.workers import BlockEvent, ComingWorker, RouterRecord, Store, WorkerRecord

INTERVAL_S = 0.5
TTL_S = 5.0
"""Ten missed intervals: a busy machine may stall us, and a stale entry costs a router only a
refused connection."""
MAX_WAITING_HASHES = 100_000
"""About 10 MB; beyond it a rewrite of the set is cheaper than the events."""

REGISTERED_S = 2.0
"""A worker waits so long to be registered before it takes a Redis that had answered for away."""
JOINED_BYTES = 64 * 16
"""Of one event that more is joined to."""

log = logging.getLogger(__name__)


class Membership:
    """One worker incarnation. `record` is for any thread, the rest for the event loop."""

    def __init__(
        self,
        store: Store,
        *,
        worker: WorkerId,
        epoch: Epoch,
        interval_s: float = INTERVAL_S,
        ttl_s: float = TTL_S,
        max_waiting_hashes: int = MAX_WAITING_HASHES,
    ) -> None:
        self._store = store
        self.worker = worker
        self.epoch = epoch
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._max_waiting_hashes = max_waiting_hashes
        self._lock = threading.Lock()
        self._present: set[BlockHash] = set()
        self._waiting: list[BlockEvent] = []
        self._num_waiting_hashes = 0
        self._num_publishing = 0
        self._sequence = 0
        self._must_rewrite = True
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.Event()
        self._is_registered = asyncio.Event()
        self.num_dropped_events = 0

    @property
    def store_is_up(self) -> bool:
        return self._store.contact.is_up

    @property
    def num_waiting_events(self) -> int:
        """Recorded, and not in Redis yet."""
        return len(self._waiting)

    def record(self, changes: Sequence[BlockChange]) -> None:
        """Notes the changes and returns; they are published soon."""
        with self._lock:
            for change in changes:
                self._note(change)
        self._loop.call_soon_threadsafe(self._work.set)

    async def run(self, registration: Registration, beat: Callable[[], Beat]) -> None:
        """Until cancelled. `registration` says what the worker is, `beat` how it is. Call `leave`
        afterwards."""
        loop = asyncio.get_running_loop()
        next_keep_alive = loop.time()
        while True:
            try:
                if loop.time() >= next_keep_alive:
                    next_keep_alive = loop.time() + self._interval_s
                    await self._keep_alive(WorkerRecord(registration=registration, beat=beat()))
                await self._publish()
                self._store.contact.note()
            except StoreError as error:
                self._store.contact.note(error)
                await asyncio.sleep(self._interval_s)
                continue
            await self._wait_for_work(next_keep_alive - loop.time())

    async def _keep_alive(self, record: WorkerRecord) -> None:
        """Registers once, and finds out whether Redis still has our blocks."""
        await self._store.register(record, ttl_s=self._ttl_s)
        self._is_registered.set()
        sequence = await self._store.sequence(self.worker, self.epoch)
        if sequence is None:
            self._must_rewrite = True

    async def list_routers(self) -> tuple[RouterRecord, ...]:
        """Those that serve, as of a moment when this worker was registered: whoever comes later
        finds it there. Waits for a Redis that has not answered yet; StoreError when it does so no
        more."""
        while not self._is_registered.is_set():
            try:
                async with asyncio.timeout(REGISTERED_S):
                    await self._is_registered.wait()
            except TimeoutError as error:
                if self._store.contact.has_answered:
                    raise StoreError(f"not registered within {REGISTERED_S:g} s") from error
        return await self._store.list_routers()

    async def leave(self) -> None:
        """Takes the worker out of Redis; Redis away does it by itself, a little later."""
        try:
            await self._store.deregister(self.worker, self.epoch)
        except StoreError as error:
            remedy = f"none, Redis forgets it within {self._ttl_s:g} s"
            log.warning("left without deregistering", extra={"why": str(error), "remedy": remedy})

    def _note(self, change: BlockChange) -> None:
        if not change.hashes and change.kind != "cleared":
            return  # nothing: and to store nothing would say that the set was rewritten
        match change.kind:
            case "stored":
                self._present.update(change.hashes)
            case "evicted":
                self._present.difference_update(change.hashes)
            case "cleared":
                self._present.clear()
        self._wait_for_publishing(change)
        if self._num_waiting_hashes > self._max_waiting_hashes:
            self.num_dropped_events += len(self._waiting)
            self._drop_waiting()
            self._must_rewrite = True

    def _wait_for_publishing(self, change: BlockChange) -> None:
        """As one event with the last that waits, if that is of the same kind and nobody has it
        yet: an entry of a stream costs its readers as much as ten hashes."""
        packed = b"".join(change.hashes)
        self._num_waiting_hashes += len(change.hashes)
        last = self._waiting[-1] if len(self._waiting) > self._num_publishing else None
        if last is not None and last.kind == change.kind and len(last.packed_hashes) < JOINED_BYTES:
            joined = last.packed_hashes + packed
            self._waiting[-1] = msgspec.structs.replace(last, packed_hashes=joined)
            return
        self._sequence += 1
        self._num_waiting_hashes += 1
        event = BlockEvent(
            worker=self.worker,
            epoch=self.epoch,
            sequence=self._sequence,
            kind=change.kind,
            packed_hashes=packed,
        )
        self._waiting.append(event)

    async def _publish(self) -> None:
        """What waits, or everything; what could not be published waits on."""
        if self._must_rewrite:
            return await self._rewrite()
        with self._lock:
            events = tuple(self._waiting)
            self._num_publishing = len(events)
        if not events:
            return None
        if not await self._store.publish(events, ttl_s=self._ttl_s):
            self._must_rewrite = True
            return await self._rewrite()
        with self._lock:
            self._num_publishing = 0
            if self._waiting and self._waiting[0] is events[0]:  # else dropped meanwhile
                del self._waiting[: len(events)]
                self._num_waiting_hashes = sum(
                    len(event.packed_hashes) // 16 + 1 for event in self._waiting
                )
        return None

    async def _rewrite(self) -> None:
        with self._lock:
            self._drop_waiting()
            self._sequence += 2  # a gap, so that whoever follows the events reads the set
            sequence, hashes = self._sequence, list(self._present)
            self._must_rewrite = False
        try:
            await self._store.rewrite(
                hashes, worker=self.worker, epoch=self.epoch, sequence=sequence, ttl_s=self._ttl_s
            )
        except BaseException:
            self._must_rewrite = True
            raise
        log.info("blocks rewritten", extra={"blocks": len(hashes), "sequence": sequence})

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._num_publishing = 0
        self._num_waiting_hashes = 0

    async def _wait_for_work(self, at_most_s: float) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._work.wait()
        except TimeoutError:
            return
        self._work.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The workers that Redis knows."""

    workers: tuple[Registration, ...] = ()
    coming: tuple[ComingWorker, ...] = ()
    """That load, and will register."""


async def watch_workers(store: Store, *, interval_s: float = INTERVAL_S) -> AsyncIterator[Roster]:
    """The workers, every `interval_s`; the last known ones while Redis is away."""
    known = Roster()
    while True:
        try:
            members = await store.list_members()
            workers = tuple(record.registration for record in members.workers)
            known = Roster(workers=workers, coming=members.coming)
            store.contact.note()
        except StoreError as error:
            store.contact.note(error)
        yield known
        await asyncio.sleep(interval_s)
