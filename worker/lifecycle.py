"""A worker between loading its model and its exit: serve, beat, expire, drain.

Runs in the event loop.
"""

import asyncio
import logging
import time
from typing import assert_never

from protocol.channel.port import RouterGone, RouterJoined, RouterMessage, RouterPort
from protocol.ids import RouterId
from protocol.membership import Membership
from protocol.messages import Abort, Beat, Computation, Registration, WorkerState
from protocol.process.metrics import WorkerMetrics
from protocol.process.run import Shutdown
from worker.endings import failure
from worker.service import EngineService

BEAT_S = 0.5
TICK_S = 0.05
"""How late a deadline, the end of a drain or room for more may be noticed."""

log = logging.getLogger(__name__)


class Lifecycle:
    """`await run()` returns once the worker has drained and left."""

    def __init__(
        self,
        service: EngineService,
        *,
        port: RouterPort,
        membership: Membership,
        metrics: WorkerMetrics,
        shutdown: Shutdown,
        drain_s: float,
    ) -> None:
        self._service = service
        self._port = port
        self._membership = membership
        self._metrics = metrics
        self._shutdown = shutdown
        self._drain_s = drain_s
        self._num_shown = (0, 0)
        self.state: WorkerState = "ready"

    async def run(self, registration: Registration) -> None:
        async with self._port.serve(registration):
            async with asyncio.TaskGroup() as tasks:
                membership = self._membership.run(registration, self._beat)
                running = [
                    tasks.create_task(self._receive(), name="receive"),
                    tasks.create_task(self._send_beats(), name="beats"),
                    tasks.create_task(self._expire(), name="expire"),
                    tasks.create_task(membership, name="membership"),
                ]
                log.info("ready", extra={"address": registration.address})
                await self._shutdown.asked.wait()
                await self._drain()
                for task in running:
                    task.cancel()
            await self._membership.leave()

    async def _receive(self) -> None:
        while True:
            match await self._port.receive():
                case RouterMessage(router, message):
                    self._answer(router, message)
                case RouterJoined(router):
                    self._port.send(router, self._beat())
                case RouterGone(router, _):
                    self._service.forget_router(router)
                case arrival:
                    assert_never(arrival)

    def _answer(self, router: RouterId, message: Computation | Abort) -> None:
        if isinstance(message, Abort):
            self._service.abort_request(router, message.request, message.attempt)
        elif self.state == "ready":
            self._metrics.accepted.inc()
            self._service.accept_request(router, message)
        else:
            why = failure(message, "overloaded", f"the worker is {self.state}")
            self._service.refuse_request(router, message, why)

    async def _send_beats(self) -> None:
        """Every half second, and within a tick when there is more room than was last said."""
        said, due_at = self._beat(), 0.0
        while True:
            beat, now = self._beat(), time.monotonic()
            if now >= due_at or _has_more_room(beat, than=said):
                self._port.broadcast(beat)
                self._show(beat)
                said, due_at = beat, now + BEAT_S
            await asyncio.sleep(TICK_S)

    async def _expire(self) -> None:
        while True:
            self._service.expire_requests(time.monotonic())
            await asyncio.sleep(TICK_S)

    async def _drain(self) -> None:
        """Running requests finish and leases end, as far as time allows; the rest fails."""
        self.state = "draining"
        beat = self._beat()
        self._port.broadcast(beat)
        self._show(beat)
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
        return self._service.beat(self.state)

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


def _has_more_room(beat: Beat, *, than: Beat) -> bool:
    """Blocks came back, or a request went."""
    then, now = than.blocks, beat.blocks
    num_back = (now.free + now.cached) - (then.free + then.cached)
    num_gone = (than.load.running + than.load.waiting) - (beat.load.running + beat.load.waiting)
    return num_back > 0 or num_gone > 0
