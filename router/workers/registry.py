"""The workers of the moment: a link to each, its state, and whom to tell what it says.

Membership comes from Redis, life from the links: Redis away changes nothing here, a lost link
removes its worker at once and tells every open request. A message that was posted may be lost with
its worker.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

import xxhash

from protocol.codec import SPOKEN_VERSIONS, one_emit
from protocol.errors import BatonError, PeerLost, PeerSilent, WireError
from protocol.ids import Epoch, RequestId, RouterId, WorkerId
from protocol.membership import Roster
from protocol.messages import (
    Beat,
    Emit,
    Failed,
    LoadReport,
    Registration,
    ServedVersion,
    Step,
    TextPart,
    ToCompute,
    ToRouter,
    ToWorker,
    Welcome,
)
from protocol.store.workers import ComingWorker
from router.fast_path.fast_path import FastPath
from router.placement.fleet import Fleet
from router.workers.expected_workers import ExpectedWorkers
from router.workers.message_receiver import MessageReceiver
from router.workers.worker import KnownWorker, WorkerConnection
from router.workers.worker_messages import WorkerGone, WorkerMessage

_ADDRESS = re.compile(r" at \w+://[^\s:]+(?::\d+)?|\w+://\S+")
log = logging.getLogger("baton.registry")

RETRY_S, MAX_RETRY_S = 0.25, 5.0
"""Between two tries to reach a worker, twice as long each time."""
Connect = Callable[[Registration], AbstractAsyncContextManager[WorkerConnection]]
"""Entering shakes hands: PeerLost when nobody is there, WireError for another version."""


class Registry:
    """Owned by one event loop. Of equally good workers each `router` prefers others; None: the
    first by name."""

    def __init__(
        self,
        *,
        connect: Connect,
        router: RouterId | None = None,
        fast_path: FastPath | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self.fast_path = fast_path
        """What it takes of a step is told to nobody here."""
        self._clock = clock
        self._workers: dict[WorkerId, KnownWorker] = {}
        self.fleet = Fleet(order=str if router is None else partial(_as_seen_by, router))
        """All workers, by the numbers that placement goes by."""
        self._serving: dict[WorkerId, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._receivers: dict[RequestId, MessageReceiver] = {}
        self._changed = asyncio.Event()
        self._expected = ExpectedWorkers()
        self._has_served = False
        """A decode worker was ready once."""
        self.listeners: list[Callable[[], None]] = []
        """Called whenever a worker comes, goes or changes state."""
        self.text_listeners: list[Callable[[KnownWorker, TextPart], None]] = []
        """Called with each part of a text that was asked for."""
        self.report_listeners: list[Callable[[], None]] = []
        """Called whenever a worker has said how much it has to do."""

    @property
    def workers(self) -> list[KnownWorker]:
        """By name, in whatever state."""
        return [self._workers[worker] for worker in sorted(self._workers)]

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    @property
    def known_workers(self) -> Mapping[WorkerId, KnownWorker]:
        """As they come and go, in whatever order and state."""
        return self._workers

    def ready_workers(self) -> list[KnownWorker]:
        return [worker for worker in self.workers if worker.is_ready]

    def known_worker(self, worker: WorkerId) -> KnownWorker:
        """One that was among `workers` a moment ago, before anything was awaited."""
        return self._workers[worker]

    def not_ready(self, version: ServedVersion | None = None) -> str | None:
        """None with one ready decode worker of that version, None: of any: it can prefill too, if
        it must. Strangers may read it, so it has roles, no names and no addresses."""
        workers = [w for w in self.workers if version in (None, w.registration.version)]
        if any(w.is_ready and w.role == "decode" for w in workers):
            return None
        others = [w for w in workers if not w.is_ready]
        problems = [f"{w.role}: {_ADDRESS.sub('', w.why.replace(w.id, w.role))}" for w in others]
        return "; ".join(["no decode worker", *problems])

    def why_not_served(self, *, within_s: float) -> str | None:
        """As `not_ready`, but None too where a decode worker has been ready and one may be again:
        requests would wait for it, `within_s` at most."""
        is_waited_for = self._has_served and self.may_serve_soon(None, within_s=within_s)
        return None if is_waited_for else self.not_ready()

    def why_unused(self, worker: KnownWorker) -> str:
        """Why a worker that is here gets no requests; "" when it may get some."""
        if not worker.is_ready:
            return worker.why
        decodes = [w.registration for w in self.ready_workers() if w.role == "decode"]
        own = worker.registration
        if any((one.version, one.compat) == (own.version, own.compat) for one in decodes):
            return ""
        if not any(one.version == own.version for one in decodes):
            return "there is no decode worker" + (" of its model and revision" if decodes else "")
        return "no decode worker shares its model and KV layout"

    @property
    def coming_models(self) -> frozenset[str]:
        """As of `ExpectedWorkers.models`."""
        return self._expected.models

    def is_replaced(self, version: ServedVersion) -> bool:
        """No decode worker of that version is ready, and one of another version of its model is."""
        decodes = [one.version for one in self.ready_workers() if one.role == "decode"]
        return version not in decodes and any(one.model == version.model for one in decodes)

    def may_serve_soon(self, model: str | None, *, within_s: float) -> bool:
        """Whether a decode worker of that model, None: of any, may be here within `within_s`: one
        loads, or is being met, or one drains, or was lost so short a time ago, and whoever
        supervises it starts another."""
        now = self._clock()
        if self._expected.is_coming(model) or now < self._expected.left_at(model) + within_s:
            return True
        decodes = (w for w in self._workers.values() if w.role == "decode")
        return any(
            w.state == "draining" or (w.state == "connecting" and now < w.met_at + within_s)
            for w in decodes
            if model in (None, w.registration.model)
        )

    def add_receiver(self, request: RequestId, receiver: MessageReceiver) -> None:
        """It is told whatever workers say of the request, and which workers are lost."""
        assert request not in self._receivers, f"{request} already has a receiver"
        self._receivers[request] = receiver

    @property
    def num_receivers(self) -> int:
        return len(self._receivers)

    def remove_receiver(self, request: RequestId) -> None:
        self._receivers.pop(request, None)

    def post_message(self, worker: WorkerId, epoch: Epoch, message: ToWorker) -> bool:
        """Hand the message to that incarnation's link; False if it is gone: removed already, or
        found to be gone by this very call."""
        known = self._workers.get(worker)
        if known is None or known.epoch != epoch or known.connection is None:
            return False
        try:
            known.connection.send_now(message)
        except PeerLost as error:
            self._stop_serving(worker)
            self._remove(known, f"was lost: {error}")
            return False
        if isinstance(message, ToCompute):
            known.note_posted(message.request)
        return True

    async def wait_change(self, *, timeout_s: float) -> None:
        """Until a worker comes, goes or changes state; TimeoutError when none does in time."""
        async with asyncio.timeout(timeout_s):
            await self._changed.wait()

    async def run(self, rosters: AsyncIterator[Roster]) -> None:
        """Serve a link to every worker of the newest roster, until cancelled. A worker absent from
        it stays as long as its link lives."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            async for roster in rosters:
                self._note_coming(roster.coming)
                for registration in roster.workers:
                    self._meet(registration)
                present = {registration.worker for registration in roster.workers}
                for worker in self.workers:
                    away = worker.state == "mismatched" or worker.id not in self._serving
                    if away and worker.id not in present:
                        self._remove(worker, "is no longer registered")

    def _note_coming(self, coming: Iterable[ComingWorker]) -> None:
        if self._expected.note_coming(coming):
            self._signal()

    def _meet(self, registration: Registration) -> None:
        known = self._workers.get(registration.worker)
        if known is not None and known.epoch == registration.epoch:
            waits = known.state == "connecting" and known.id not in self._serving
            if waits and self._clock() >= known.retry_at:
                self._begin_serving(known)
            return
        if known is not None:
            self._stop_serving(registration.worker)
            self._remove(known, "was replaced by a new incarnation")
        worker = KnownWorker(registration, met_at=self._clock())
        self._workers[worker.id] = worker
        worker.join_fleet(self.fleet)
        if (why := _not_understood(registration)) is not None:
            self._mismatch(worker, why)
            return
        self._begin_serving(worker)
        self._signal()

    def _begin_serving(self, worker: KnownWorker) -> None:
        assert self._tasks is not None, "run() is not running"
        serving = self._tasks.create_task(self._serve(worker), name=f"link {worker.id}")
        self._serving[worker.id] = serving

    async def _serve(self, worker: KnownWorker) -> None:
        """One incarnation, from connecting to its loss."""
        try:
            async with self._connect(worker.registration) as link:
                if link.registration.epoch != worker.epoch:
                    raise PeerLost(f"{worker.id} now answers as another incarnation")
                worker.connection = link
                accept, path = partial(self._receive, worker), self.fast_path
                if path is None:
                    await link.hear(accept)
                else:
                    await link.hear(accept, take_frame=partial(self._pass_step, worker, path))
        except WireError as error:
            self._mismatch(worker, str(error))
        except BatonError as error:
            if worker.connection is None:
                self._unreached(worker, str(error))
            else:
                died = not isinstance(error, PeerSilent)
                self._remove(worker, f"was lost: {error}", died=died)
        except Exception as error:  # what one worker says costs its own link
            log.exception("link failed", extra={"worker": worker.id})
            self._remove(worker, f"was lost: {type(error).__name__}: {error}")
        finally:
            worker.connection = None

    def _unreached(self, worker: KnownWorker, why: str) -> None:
        """It stays, so that `/cluster` says why, and is tried again while it is registered."""
        if self._workers.get(worker.id) is not worker:
            return
        del self._serving[worker.id]
        worker.num_tries += 1
        pause_s = min(MAX_RETRY_S, RETRY_S * 2.0 ** min(worker.num_tries, 10))
        worker.retry_at = self._clock() + pause_s
        if worker.why != why:
            remedy = "none if it is gone for good; else see its address, its log and the network"
            log.warning("not reached", extra={"worker": worker.id, "why": why, "remedy": remedy})
            worker.why = why
            self._signal()

    def _receive(self, worker: KnownWorker, message: ToRouter) -> None:
        now = worker.heard_at = self._clock()
        match message:
            case Step():
                worker.advanced_at = now
                self._tell_tokens(worker, message.emits, now)
            case Beat():
                self._beat(worker, message, now)
                self._tell_report()
            case LoadReport():
                worker.note_load(message, now=now)
                self._tell_report()
            case Failed(code="broken"):
                raise PeerLost(message.message)
            case Welcome():
                log.warning("second welcome", extra={"worker": worker.id, "remedy": "report it"})
            case TextPart():
                for listener in self.text_listeners:
                    listener(worker, message)
            case _:  # of one request: the type of `WorkerMessage.message` is the closed union
                worker.advanced_at = now
                receiver = self._receivers.get(message.request)
                if receiver is not None:
                    said = WorkerMessage(worker.id, worker.epoch, message)
                    receiver.accept_message(said, now=now)

    def _pass_step(self, worker: KnownWorker, path: FastPath, frame: bytes) -> bool:
        """Whether it was a step, and is done with."""
        now = self._clock()
        left = path.pass_step(frame, epoch=worker.epoch, now=now)
        if left is None:
            return False
        worker.heard_at = worker.advanced_at = now
        if left:
            self._tell_tokens(worker, map(one_emit.decode, left), now)
        return True

    def _tell_tokens(self, worker: KnownWorker, emits: Iterable[Emit], now: float) -> None:
        """The one loop that every token goes through, but those that take the fast path."""
        of_request = self._receivers.get
        name, epoch, unheard = worker.id, worker.epoch, worker.unheard
        for emit in emits:
            if emit.request in unheard:
                worker.note_heard(emit.request, emit.index)
            receiver = of_request(emit.request)
            if receiver is not None:
                receiver.accept_emit(emit, name, epoch, now)

    def _beat(self, worker: KnownWorker, beat: Beat, now: float) -> None:
        if beat.epoch != worker.epoch:
            raise PeerLost(f"{worker.id} now answers as another incarnation")
        before = worker.state
        worker.note_beat(beat, now=now)
        self._has_served |= worker.is_ready and worker.role == "decode"
        if worker.state != before:
            log.info("worker state", extra={"worker": worker.id, "state": worker.state})
            self._signal()

    def _mismatch(self, worker: KnownWorker, why: str) -> None:
        """It stays, unused, so that readiness can say why; a new incarnation is tried again."""
        self._tell_gone(worker, WorkerGone(why))
        worker.note_mismatched(why)
        remedy = "none while it or this router is being replaced; else run both of one version"
        log.error("worker unusable", extra={"worker": worker.id, "why": why, "remedy": remedy})
        self._signal()

    def _stop_serving(self, worker: WorkerId) -> None:
        task = self._serving.get(worker)
        if task is not None:
            task.cancel()

    def _remove(self, worker: KnownWorker, reason: str, *, died: bool = True) -> None:
        """Idempotent: an incarnation is removed once, and every open request is told. Of one that
        did not die, as far as is known, no request is to blame."""
        if self._workers.get(worker.id) is not worker:
            return
        del self._workers[worker.id]
        worker.leave_fleet()
        self._serving.pop(worker.id, None)
        if worker.role == "decode" and worker.state in ("ready", "draining"):
            self._expected.note_left(worker.registration.model, now=self._clock())
        if worker.state != "connecting":
            remedy = "none if a supervisor restarts it, else start it; its own log says why it went"
            log.warning("worker gone", extra={"worker": worker.id, "why": reason, "remedy": remedy})
        blamed = worker.unheard if died and worker.state != "draining" else ()
        self._tell_gone(worker, WorkerGone(reason, frozenset(blamed)))
        self._signal()

    def _tell_gone(self, worker: KnownWorker, gone: WorkerGone) -> None:
        now, message = self._clock(), WorkerMessage(worker.id, worker.epoch, gone)
        for receiver in list(self._receivers.values()):
            receiver.accept_message(message, now=now)

    def _tell_report(self) -> None:
        for listener in self.report_listeners:
            listener()

    def _signal(self) -> None:
        for listener in self.listeners:
            listener()
        self._changed.set()
        self._changed = asyncio.Event()


def _not_understood(registration: Registration) -> str | None:
    """Why nothing can be asked of such a worker; None: it can."""
    wire = registration.wire
    if wire not in SPOKEN_VERSIONS:
        spoken = " and ".join(map(str, SPOKEN_VERSIONS))
        return f"it speaks wire {wire}, this router {spoken}"
    return None if registration.text else f"it speaks wire {wire}, which tells no text"


def _as_seen_by(router: RouterId, worker: WorkerId) -> int:
    """An order of the workers that no other router has."""
    return xxhash.xxh3_64_intdigest(f"{router} {worker}".encode())
