"""The live workers: a link to each, its state, and whom to tell what it says.

`router.__main__` runs it beside the HTTP server; `router.requests.dispatch` asks it for candidates,
posts messages through it and opens a mailbox per request. Membership comes from Redis, life from
the links: Redis away changes nothing here, a lost link removes its worker at once and tells every
open mailbox.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, assert_never

from protocol.errors import BatonError, PeerLost, WireError
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Aborted,
    Beat,
    Failed,
    Finished,
    Landed,
    PrefillDone,
    Registration,
    Started,
    Step,
    ToRouter,
    ToWorker,
    Welcome,
)
from router.workers.letters import Gone, Letter
from router.workers.mailbox import Mailbox
from router.workers.worker import LiveWorker, Outlet

log = logging.getLogger("baton.registry")


class Link(Outlet, Protocol):
    """What the registry needs of `protocol.channel.link.WorkerLink`."""

    registration: Registration

    def messages(self) -> AsyncIterator[ToRouter]:
        """Ends by raising PeerLost when the worker is gone."""


Connect = Callable[[Registration], AbstractAsyncContextManager[Link]]
"""Entering shakes hands: PeerLost when nobody is there, WireError for another version."""


class Registry:
    """Owned by one event loop. Workers of another `model` are kept unused; None: any will do."""

    def __init__(
        self,
        *,
        connect: Connect,
        model: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._model = model
        self._clock = clock
        self._workers: dict[WorkerId, LiveWorker] = {}
        self._serving: dict[WorkerId, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._mailboxes: dict[RequestId, Mailbox] = {}
        self._changed = asyncio.Event()
        self.listeners: list[Callable[[], None]] = []
        """Called whenever a worker comes, goes or changes state."""

    # -- for dispatch and the HTTP surface ------------------------------------------------

    @property
    def workers(self) -> list[LiveWorker]:
        """By name, in whatever state."""
        return [self._workers[worker] for worker in sorted(self._workers)]

    def ready_workers(self) -> list[LiveWorker]:
        return [worker for worker in self.workers if worker.is_ready]

    def incarnation(self, worker: WorkerId) -> LiveWorker | None:
        return self._workers.get(worker)

    def not_ready(self) -> str | None:
        """None with one ready decode worker: it can prefill too, if it must."""
        if self._decode_compats():
            return None
        problems = [f"{w.id}: {w.why}" for w in self.workers if not w.is_ready]
        return "; ".join(["no decode worker", *problems])

    def why_unused(self, live: LiveWorker) -> str:
        """Why a worker that is here gets no requests; "" when it may get some."""
        if not live.is_ready:
            return live.why
        compats = self._decode_compats()
        if live.role == "decode" or live.registration.compat in compats:
            return ""
        if not compats:
            return "there is no decode worker"
        return "no decode worker shares its model and KV layout"

    def _decode_compats(self) -> set[str]:
        return {w.registration.compat for w in self.ready_workers() if w.role == "decode"}

    def open_mailbox(self, request: RequestId, mailbox: Mailbox) -> None:
        assert request not in self._mailboxes, f"{request} already has a mailbox"
        self._mailboxes[request] = mailbox

    @property
    def num_mailboxes(self) -> int:
        return len(self._mailboxes)

    def close_mailbox(self, request: RequestId) -> None:
        self._mailboxes.pop(request, None)

    def post(self, worker: WorkerId, epoch: Epoch, message: ToWorker) -> bool:
        """Hand the message to that incarnation's link; False if it is gone: removed already, or
        found to be gone by this very call."""
        live = self._workers.get(worker)
        if live is None or live.epoch != epoch or live.outlet is None:
            return False
        try:
            live.outlet.send_now(message)
        except PeerLost as error:
            self._stop_serving(worker)
            self._remove(live, f"was lost: {error}")
            return False
        return True

    async def wait_change(self, *, timeout_s: float) -> None:
        """Until a worker comes, goes or changes state; TimeoutError when none does in time."""
        async with asyncio.timeout(timeout_s):
            await self._changed.wait()

    # -- life -----------------------------------------------------------------------------

    async def run(self, memberships: AsyncIterator[Sequence[Registration]]) -> None:
        """Serve a link to every worker of the newest membership, until cancelled. A worker
        absent from it stays as long as its link lives."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            async for registrations in memberships:
                for registration in registrations:
                    self._meet(registration)
                present = {registration.worker for registration in registrations}
                for live in self.workers:
                    if live.state == "mismatched" and live.id not in present:
                        self._remove(live, "is no longer registered")

    def _meet(self, registration: Registration) -> None:
        known = self._workers.get(registration.worker)
        if known is not None and known.epoch == registration.epoch:
            return
        if known is not None:
            self._stop_serving(registration.worker)
            self._remove(known, "was replaced by a new incarnation")
        assert self._tasks is not None, "run() is not running"
        live = LiveWorker(registration)
        self._workers[live.id] = live
        if self._model not in (None, registration.model):
            self._mismatch(live, f"it serves {registration.model}, this router {self._model}")
            return
        self._serving[live.id] = self._tasks.create_task(self._serve(live), name=f"link {live.id}")
        self._signal()

    async def _serve(self, live: LiveWorker) -> None:
        """One incarnation, from connecting to its loss."""
        try:
            async with self._connect(live.registration) as link:
                if link.registration.epoch != live.epoch:
                    raise PeerLost(f"{live.id} now answers as another incarnation")
                live.outlet = link
                async for message in link.messages():
                    self._receive(live, message)
            self._remove(live, "ended its link")
        except WireError as error:
            self._mismatch(live, str(error))
        except BatonError as error:
            self._remove(live, f"was lost: {error}")
        finally:
            live.outlet = None

    def _receive(self, live: LiveWorker, message: ToRouter) -> None:
        match message:
            case Step():
                for emit in message.emits:
                    self._deliver(emit.request, Letter(live.id, live.epoch, emit))
            case Started() | PrefillDone() | Landed() | Finished() | Failed() | Aborted():
                self._deliver(message.request, Letter(live.id, live.epoch, message))
            case Beat():
                self._beat(live, message)
            case Welcome():
                log.warning("second welcome", extra={"worker": live.id})
            case _:
                assert_never(message)

    def _deliver(self, request: RequestId, letter: Letter) -> None:
        mailbox = self._mailboxes.get(request)
        if mailbox is not None:
            mailbox.put(letter)

    def _beat(self, live: LiveWorker, beat: Beat) -> None:
        if beat.epoch != live.epoch:
            raise PeerLost(f"{live.id} now answers as another incarnation")
        before = live.state
        live.note_beat(beat, now=self._clock())
        if live.state != before:
            log.info("worker", extra={"worker": live.id, "state": live.state})
            self._signal()

    def _mismatch(self, live: LiveWorker, why: str) -> None:
        """It stays, unused, so that readiness can say why; a new incarnation is tried again."""
        self._tell_gone(live, why)
        live.state, live.why = "mismatched", why
        log.error("worker", extra={"worker": live.id, "state": live.state, "why": why})
        self._signal()

    def _stop_serving(self, worker: WorkerId) -> None:
        task = self._serving.get(worker)
        if task is not None:
            task.cancel()

    def _remove(self, live: LiveWorker, reason: str) -> None:
        """Idempotent: an incarnation is removed once, and every open request is told."""
        if self._workers.get(live.id) is not live:
            return
        del self._workers[live.id]
        self._serving.pop(live.id, None)
        if live.state != "connecting":
            log.warning("worker", extra={"worker": live.id, "state": "gone", "why": reason})
        self._tell_gone(live, reason)
        self._signal()

    def _tell_gone(self, live: LiveWorker, reason: str) -> None:
        for mailbox in list(self._mailboxes.values()):
            mailbox.put(Letter(live.id, live.epoch, Gone(reason)))

    def _signal(self) -> None:
        for listener in self.listeners:
            listener()
        self._changed.set()
        self._changed = asyncio.Event()
