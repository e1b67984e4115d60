"""Whether KV comes to this worker from those of the other role: a block from each, now and then.

Until one has come this worker is not ready, if there is anybody to ask: a rollout stops there. From
then on what fails is told, and never a reason to be less ready: it may serve alone.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol, assert_never

from protocol.errors import StoreError
from protocol.ids import WorkerId
from protocol.messages import PrefixSource, Registration
from protocol.process.metrics import WorkerMetrics
from protocol.store.workers import WorkerRecord
from worker.reported.canary_end import CanaryEnd, CanarySource

FIRST_S: Final = 3.0
"""For a block: the largest take milliseconds, a link that is opened first seconds at most."""
MOST_PEERS: Final = 3
ROUND_S: Final = 10.0
"""For those peers, one after another, before the worker is ready."""
AGAIN_S: Final = 1.0
EVERY_S: Final = 30.0
MOST_TOLD: Final = 16
ANSWER_S: Final = 2.0
"""How much later than its deadline an end may be told."""
log = logging.getLogger(__name__)


class WorkerList(Protocol):
    async def list_workers(self) -> Sequence[WorkerRecord]:
        """As `protocol.store.workers.Store.list_workers`."""


class PeerCanaries:
    """Those of one worker, in its event loop."""

    def __init__(
        self,
        cluster: WorkerList,
        fetches: CanarySource,
        *,
        metrics: WorkerMetrics,
        again_s: float = AGAIN_S,
        every_s: float = EVERY_S,
        first_s: float = FIRST_S,
    ) -> None:
        self._cluster = cluster
        self._fetches = fetches
        self._metrics = metrics
        self._again_s, self._every_s, self._first_s = again_s, every_s, first_s
        self._failing: dict[WorkerId, str] = {}
        self._num_looks = 0
        if fetches.can_fetch:
            metrics.health.note_no_kv("it has not looked for peers yet")

    @property
    def unreachable(self) -> tuple[WorkerId, ...]:
        """Peers from which no block came when last asked."""
        return tuple(sorted(self._failing))[:MOST_TOLD]

    async def run(self, registration: Registration) -> None:
        if not self._fetches.can_fetch:
            return
        while (why := await self._look_first(registration)) is not None:
            self._metrics.health.note_no_kv(why)
            await asyncio.sleep(self._again_s)
        self._metrics.health.note_no_kv(None)
        while True:
            await asyncio.sleep(self._every_s)
            await self._look(registration)

    async def _look_first(self, registration: Registration) -> str | None:
        """Why nothing came from anybody; None: something came, there is nobody, or all the time
        this worker had no block to spare, for it serves."""
        peers = list((await self._peers(registration)).values())[:MOST_PEERS]
        with suppress(TimeoutError):
            async with asyncio.timeout(ROUND_S):
                if await self._reach_one(peers):
                    return None
        whys = (f"no KV comes from {one}: {why}" for one, why in self._failing.items())
        return "; ".join(whys) or None

    async def _reach_one(self, peers: Sequence[PrefixSource]) -> bool:
        """Whether one answered. Asks again where it was this worker that had no block."""
        while peers:
            skipped = []
            for peer in peers:
                match (await self._ask(peer)).outcome:
                    case "landed" | "declined":
                        return True
                    case "skipped":
                        skipped.append(peer)
                    case "failed":
                        pass
                    case outcome:
                        assert_never(outcome)
            if skipped:
                await asyncio.sleep(self._again_s)
            peers = skipped
        return False

    async def _look(self, registration: Registration) -> None:
        """At one more peer, and at those from which nothing came."""
        peers = await self._peers(registration)
        self._num_looks += 1
        asked = [one for one in peers if one in self._failing][:MOST_PEERS]
        sound = [one for one in peers if one not in self._failing]
        if sound:
            asked.append(sound[self._num_looks % len(sound)])
        for one in asked:
            await self._ask(peers[one])

    async def _peers(self, registration: Registration) -> Mapping[WorkerId, PrefixSource]:
        """Of the other role, with the same blocks, that lend; each worker begins with another."""
        try:
            found = await self._cluster.list_workers()
        except StoreError:
            return {}
        ours = registration
        peers = [
            one
            for record in found
            if (one := record.registration).role != ours.role
            and (one.compat, one.version) == (ours.compat, ours.version)
            and one.kv_address
            and record.beat.state == "ready"
        ]
        peers.sort(key=lambda one: hashlib.sha256(f"{ours.worker} {one.worker}".encode()).digest())
        for gone in self._failing.keys() - {one.worker for one in peers}:
            self._note(gone, None)
        return {
            one.worker: PrefixSource(
                worker=one.worker, epoch=one.epoch, address=one.kv_address, num_tokens=1
            )
            for one in peers
        }

    async def _ask(self, peer: PrefixSource) -> CanaryEnd:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[CanaryEnd] = loop.create_future()

        def note_end(end: CanaryEnd) -> None:
            if not ended.done():
                ended.set_result(end)

        def on_end(end: CanaryEnd) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know
                loop.call_soon_threadsafe(note_end, end)

        self._fetches.fetch_block(peer, within_s=self._first_s, on_end=on_end)
        try:
            async with asyncio.timeout(self._first_s + ANSWER_S):
                end = await ended
        except TimeoutError:
            end = CanaryEnd(outcome="failed", why=f"no answer within {self._first_s:g} s")
        self._metrics.canaries.labels(end.outcome).inc()
        self._note(peer.worker, end.why if end.outcome == "failed" else None)
        return end

    def _note(self, peer: WorkerId, failure: str | None) -> None:
        was_failing = peer in self._failing
        if failure is None:
            self._failing.pop(peer, None)
        else:
            self._failing[peer] = failure
        self._metrics.unreachable.set(len(self._failing))
        if failure is not None and not was_failing:
            remedy = "see that its KV port can be reached from here: baton doctor --peer"
            told = {"peer": peer, "why": failure, "remedy": remedy}
            log.warning("no KV comes from a peer", extra=told)
        elif failure is None and was_failing:
            log.info("KV comes from a peer again, or it is gone", extra={"peer": peer})
