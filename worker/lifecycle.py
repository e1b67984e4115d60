"""A worker between loading its model and its exit: serve, beat, expire, drain.

Runs in the event loop.
"""

import asyncio
import logging
import time
from typing import assert_never

import msgspec

from protocol.channel.port import RouterGone, RouterJoined, RouterMessage, RouterPort
from protocol.ids import RouterId
from protocol.membership import Membership
from protocol.messages import (
    Abort,
    AskText,
    Beat,
    Computation,
    LoadReport,
    Registration,
    WorkerState,
)
from protocol.process.metrics import WorkerMetrics
from protocol.process.run import Shutdown
from protocol.text.packed_text import PackedText
from worker.endings import failure
from worker.reported.canaries import PeerCanaries
from worker.reported.greetings import Greetings
from worker.reported.reports import LoadReports
from worker.service import EngineService

BEAT_S = 0.5
TICK_S = 0.05
"""How late a deadline or the end of a drain may be noticed."""
REPORT_S = 0.025
"""How late another router's request, or room for more, may be."""

log = logging.getLogger(__name__)


class Lifecycle:
    """`await run()` returns once the worker has drained and left."""

    def __init__(
        self,
        service: EngineService,
        *,
        port: RouterPort,
        text: PackedText,
        membership: Membership,
        metrics: WorkerMetrics,
        shutdown: Shutdown,
        drain_s: float,
        canaries: PeerCanaries | None = None,
    ) -> None:
        self._service = service
        self._port = port
        self._text = text
        self._membership = membership
        self._metrics = metrics
        self._shutdown = shutdown
        self._drain_s = drain_s
        self._canaries = canaries
        self._num_shown = (0, 0)
        self._reports = LoadReports()
        self.state: WorkerState = "ready"

    async def run(self, registration: Registration) -> None:
        greetings = Greetings(
            membership=self._membership,
            health=self._metrics.health,
            met=lambda: self._port.routers,
        )
        async with self._port.serve(registration):
            async with asyncio.TaskGroup() as tasks:
                membership = self._membership.run(registration, self._beat)
                running = [
                    tasks.create_task(self._receive(), name="receive"),
                    tasks.create_task(self._send_beats(), name="beats"),
                    tasks.create_task(self._expire(), name="expire"),
                    tasks.create_task(membership, name="membership"),
                    tasks.create_task(self._meet_routers(greetings), name="greetings"),
                ]
                log.info("serving", extra={"address": registration.address})
                if self._canaries is not None:
                    canaries = self._canaries.run(registration)
                    running.append(tasks.create_task(canaries, name="canaries"))
                await self._shutdown.asked.wait()
                await self._drain()
                for task in running:
                    task.cancel()
            await self._membership.leave()

    async def _meet_routers(self, greetings: Greetings) -> None:
        await greetings.run()
        log.info("ready", extra={"routers": len(self._port.routers)})

    async def _receive(self) -> None:
        while True:
            match await self._port.receive():
                case RouterMessage(router, message):
                    self._answer(router, message)
                case RouterJoined(router):
                    num_received = self._port.num_received(router)
                    greeting = msgspec.structs.replace(self._beat(), num_received=num_received)
                    self._port.send(router, greeting)
                case RouterGone(router, _):
                    self._service.forget_router(router)
                case arrival:
                    assert_never(arrival)

    def _answer(self, router: RouterId, message: Computation | Abort | AskText) -> None:
        if isinstance(message, AskText):
            self._port.send(router, self._text.part(message))
        elif isinstance(message, Abort):
            self._service.abort_request(router, message.request, message.attempt)
        elif self.state == "ready":
            self._metrics.accepted.inc()
            self._service.accept_request(router, message)
        else:
            why = failure(message, "overloaded", f"the worker is {self.state}")
            self._service.refuse_request(router, message, why)

    async def _send_beats(self) -> None:
        """Every half second, and between them in short to those for whom there is news."""
        due_at = 0.0
        while True:
            now = time.monotonic()
            if now >= due_at:
                self._show(self._tell_all())
                due_at = now + BEAT_S
            else:
                self._report(now)
            await asyncio.sleep(REPORT_S)

    def _tell_all(self) -> Beat:
        beat, received = self._beat(), self._received()
        self._port.broadcast(
            lambda router: msgspec.structs.replace(beat, num_received=received[router])
        )
        self._reports.note_told(beat, received)
        return beat

    def _report(self, now: float) -> None:
        beat, received = self._beat(), self._received()
        workers = {router: self._port.num_workers(router) for router in received}
        for router in self._reports.due(beat, received, workers=workers, now=now):
            self._port.send(router, _in_short(beat, num_received=received[router]))

    def _received(self) -> dict[RouterId, int]:
        return {router: self._port.num_received(router) for router in self._port.routers}

    async def _expire(self) -> None:
        while True:
            self._service.expire_requests(time.monotonic())
            await asyncio.sleep(TICK_S)

    async def _drain(self) -> None:
        """Running requests finish and leases end, as far as time allows; the rest fails."""
        self.state = "draining"
        self._show(self._tell_all())
        drained = await self._until_idle(self._drain_s)
        if not drained:
            self._service.end_all_requests("the worker has drained")
            await self._until_idle(1.0)
        log.info("drained", extra={"finished": drained})

    async def _until_idle(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not self._service.is_idle():
            if time.monotonic() > deadline or (self._shutdown.hurry.is_set() and within_s > 1.0):
                return False
            await asyncio.sleep(TICK_S)
        return True

    def _beat(self) -> Beat:
        beat = self._service.beat(self.state)
        if self._canaries is None or not (unreachable := self._canaries.unreachable):
            return beat
        return msgspec.structs.replace(beat, unreachable=unreachable)

    def _show(self, beat: Beat) -> None:
        metrics = self._metrics
        metrics.health.note(beat.state, turn_s=self._service.engine_turn_s())
        for state in ("total", "free", "cached", "leased"):
            metrics.blocks.labels(state).set(getattr(beat.blocks, state))
        metrics.running.set(beat.load.running)
        metrics.waiting.set(beat.load.waiting)
        metrics.store_up.set(self._membership.store_is_up)
        refused, lost = self._port.refused_frames, self._membership.num_dropped_events
        metrics.refused_frames.inc(refused - self._num_shown[0])
        metrics.events_lost.inc(lost - self._num_shown[1])
        self._num_shown = (refused, lost)


def _in_short(beat: Beat, *, num_received: int) -> LoadReport:
    load = beat.load
    return LoadReport(
        num_received=num_received,
        running=load.running,
        waiting=load.waiting,
        waiting_tokens=load.waiting_tokens,
        context_tokens=load.context_tokens,
        num_free_blocks=beat.blocks.free + beat.blocks.cached,
    )
