"""One request's life: placed, sent, followed, and placed again when a worker is lost.

What a message of a worker means is decided in `router.requests.request`, where to go in
`router.placement.place`; here is the doing, with its deadlines, its patience and its bounds. A
prompt of several choices is as many requests.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from protocol.errors import BatonError
from protocol.ids import RequestId
from protocol.process.metrics import RouterMetrics
from router.admission.queued_request import QueuedRequest
from router.admission.shed import QueueShed
from router.admission.waiting_room import QueueLimits, WaitingRoom
from router.admission.waiting_rooms import WaitingRooms
from router.failover.retry_budget import SHARE, RetryBudget
from router.failover.stall import StallLimits
from router.failover.watchdog import Watchdog
from router.placement.place import DEFAULT_RULES, Placement, PlacementRefusal, PlacementRules
from router.prefix.prefix_index import PrefixIndex
from router.requests.candidates import Candidates, predicted
from router.requests.context import RequestContext
from router.requests.events import (
    Ended,
    GenerationRequest,
    NoWorkers,
    PoisonRequest,
    RequestFailed,
    RetriesSpent,
    RouterEnds,
    TooLong,
    VersionGone,
)
from router.requests.family import ForkFamily
from router.requests.instructions import PlaceAgain, Send
from router.requests.open_request import OpenRequest
from router.requests.poison import PoisonRequests
from router.requests.recorder import Recorder
from router.requests.request import RoutedRequest
from router.requests.token_listener import TokenListener
from router.requests.trace import TraceRing
from router.workers.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Bounds of one request's life."""

    max_attempts: int = 4
    """Lost attempts before the request fails. Refusals for lack of room are not counted."""
    patience_s: float = 15.0
    """How long a request that lost its worker, or came when the last had just been lost, waits for
    one to come back: a supervisor restarts a worker within it."""
    full_pause_s: float = 0.25
    """Before workers that refused a request are asked again; twice as long each time, at most
    2 s."""
    retry_share: float = SHARE
    """Retries a request that comes, as of `RetryBudget`."""
    stalls: StallLimits = field(default_factory=StallLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    rules: PlacementRules = DEFAULT_RULES


APART_S = 3.0
"""How long a request that may have ended a worker waits for others that have nobody else."""
HELD_PAUSE_S = 0.05
LEAST_LEFT_S = 0.05
"""Of a request's time, when it gets a worker at last: with less it is sent away."""
MAX_PAUSE_S = 2.0
MAX_REASONS = 8
"""Of lost attempts told in an error: the last ones. The trace has all."""


class Dispatcher:
    """Serves any number of requests at once on one event loop. `clock` is the registry's."""

    def __init__(
        self,
        *,
        registry: Registry,
        index: PrefixIndex,
        metrics: RouterMetrics,
        traces: TraceRing,
        limits: DispatchLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._recorder = Recorder(metrics=metrics, traces=traces)
        self._limits = limits = limits or DispatchLimits()
        self._candidates = Candidates(
            index=index, fleet=registry.fleet, workers=registry.known_workers, rules=limits.rules
        )
        self._clock = clock
        self._rooms = WaitingRooms(limits=limits.queue, metrics=metrics, clock=clock)
        for listeners in (registry.listeners, registry.report_listeners):
            listeners.append(self._rooms.note_room)
        self._poison = PoisonRequests()
        self._retries = RetryBudget(share=limits.retry_share)
        self._watchdog = Watchdog(
            requests=lambda: self._open.values(),
            workers=registry.known_workers,
            limits=limits.stalls,
            clock=clock,
        )
        self._numbers = count(1)
        self._open: dict[RequestId, OpenRequest] = {}
        self._deadlines: set[asyncio.Timeout] = set()
        self._is_ending = False

    async def generate(self, request: GenerationRequest, listener: TokenListener) -> Ended:
        """Until the request has ended; meanwhile `listener` is told what its workers say. Raises
        NoWorkers, VersionGone, TooLong and QueueShed before it was told anything, RequestFailed,
        RetriesSpent and RouterEnds then or later, and what the listener raises. Cancelling aborts
        the request on its workers."""
        if self._is_ending:
            raise _ENDS
        opened = self._open_request(request, listener)
        with self._closing(opened):
            async with asyncio.timeout(request.deadline_s) as deadline:
                self._deadlines.add(deadline)
                try:
                    return await self._follow(opened)
                finally:
                    self._deadlines.remove(deadline)

    def end_requests(self) -> None:
        """Those that are open, and any that still comes, fail with RouterEnds."""
        self._is_ending = True
        now = asyncio.get_running_loop().time()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(now)

    async def watch(self) -> None:
        """Has requests move on from workers that stand still, until cancelled."""
        await self._watchdog.run()

    def open_requests(self) -> list[OpenRequest]:
        return list(self._open.values())

    def _open_request(self, request: GenerationRequest, listener: TokenListener) -> OpenRequest:
        """The wire id is unique in this router's life, whatever ids clients choose."""
        wire_id = RequestId(f"{request.id}~{next(self._numbers)}")
        routed = RoutedRequest(request, wire_id)
        now = self._clock()
        context = RequestContext(
            routed=routed, begun_at=now, ends_at=now + request.deadline_s, waits_since=now
        )
        self._retries.note_begun()
        context.num_found_before = self._poison.num_times(request)
        if context.num_found_before:
            routed.num_suspected, context.alone_until = 1, now + APART_S
        queued = self._expected(request, now)
        opened = OpenRequest(
            context,
            listener,
            post=self._post,
            recorder=self._recorder,
            queued=queued,
            fast_path=self._registry.fast_path,
        )
        self._open[wire_id] = opened
        self._registry.add_receiver(wire_id, opened)
        self._recorder.note_opened()
        return opened

    @contextmanager
    def _closing(self, opened: OpenRequest) -> Iterator[None]:
        """Whatever its ending: its workers are told, and it is recorded."""
        context = opened.context
        closing, client_left = "an error of ours", False
        failure: BatonError
        try:
            yield
        except TimeoutError as error:
            failure = _ENDS if self._is_ending else self._deadline_passed(context)
            closing = str(failure)
            raise failure from error
        except BatonError as error:
            closing = str(error)
            if isinstance(error, PoisonRequest):
                self._recorder.note_poison(context, closing)
                self._poison.add(context.request)
            raise
        except asyncio.CancelledError:
            closing, client_left = "the client is gone", True
            raise
        finally:
            self._candidates.note_ended(context)
            self._registry.remove_receiver(context.routed.wire_id)
            del self._open[context.routed.wire_id]
            opened.close(closing, client_left=client_left)
            if context.placed_at is not None:
                num_tokens = len(context.routed.generated)
                self._room(context).note_ended(opened.queued, num_output_tokens=num_tokens)
            self._recorder.note_ended(context, now=self._clock())

    async def _follow(self, opened: OpenRequest) -> Ended:
        while True:
            await self._launch(opened)
            said = await opened.turn()
            if isinstance(said, Ended):
                return said
            self._note_loss(opened.context, said)

    def _post(self, send: Send) -> bool:
        return self._registry.post_message(send.worker, send.epoch, send.message)

    def _expected(self, request: GenerationRequest, now: float) -> QueuedRequest:
        return self._rooms.room_of(request.version).expected(
            tenant=request.tenant,
            weight=request.weight,
            priority=request.priority,
            num_prompt_tokens=len(request.token_ids),
            max_tokens=request.sampling.max_tokens,
            ends_at=now + max(0.0, request.deadline_s - LEAST_LEFT_S),
        )

    async def _launch(self, opened: OpenRequest) -> None:
        """Begin the next attempt, when it is its turn and a worker can have it."""
        context, queued, room = opened.context, opened.queued, self._room(opened.context)
        is_resumed = context.num_lost > 0 or bool(context.routed.generated)
        if is_resumed:
            queued = room.resumed(queued)
        is_placed = False
        try:
            while not is_placed:
                if room.must_wait(queued):
                    await room.wait_turn(queued, pause_s=None)
                context.queue_factor = room.queue_factor(queued)
                placement = self._place(context)
                if isinstance(placement, PlacementRefusal):
                    await self._wait_after(context, queued, placement)
                    continue
                ready: Placement | None = placement
                if (family := _undecided_family(context)) is not None:
                    room.leave(queued, is_placed=False)
                    ready = await self._wait_seated(context, placement, family)
                if ready is not None:
                    self._begin(opened, ready)
                    is_placed = True
        except QueueShed as error:
            if not is_resumed:
                raise
            raise self._deadline_passed(context) from error
        finally:
            room.leave(queued, is_placed=is_placed)

    def _place(self, context: RequestContext) -> Placement | PlacementRefusal:
        if self._poison.num_times(context.request) > context.num_found_before:
            raise PoisonRequest("a request like it, sent beside it, was the end of two workers")
        self._candidates.avoided = self._watchdog.avoided
        alone = self._candidates.place_request(context, now=self._clock())
        if isinstance(alone, PlacementRefusal) and alone.why == "saturated":
            return alone  # who goes on from another has a seat and a queue like everybody
        return self._place_fork(context) or alone

    def _place_fork(self, context: RequestContext) -> Placement | None:
        family = _joined_family(context)
        point = None if family is None else family.fork_point
        if point is None:
            return None
        return self._candidates.place_fork(context, point, now=self._clock())

    async def _wait_seated(
        self, context: RequestContext, seat: Placement, family: ForkFamily
    ) -> Placement | None:
        """Until its family's first is under way on a decode worker, or has ended; None: it is to be
        placed by itself. Seats are taken as choices come, so that those for which there is none are
        sent away before their client has had a byte."""
        self._candidates.take_seat(context, seat)
        try:
            await _decided(family)
            return self._place_fork(context)
        finally:
            self._candidates.give_seat_back(context, seat)

    async def _wait_after(
        self, context: RequestContext, queued: QueuedRequest, refusal: PlacementRefusal
    ) -> None:
        """Until it may be tried again: who waits for room already, in its place."""
        room = self._room(context)
        is_waiting = room.is_waiting(queued)
        if self._is_replaced(context):
            raise VersionGone(f"its version is served no longer, another is: {refusal.reason}")
        if refusal.why == "too_long" and not context.reasons:
            raise TooLong(refusal.reason)
        if refusal.why == "saturated" or context.refused or is_waiting:
            await room.wait_turn(queued, pause_s=self._pause_s(context))
            context.refused.clear()
        elif refusal.why == "held":
            await self._pause(context)
        elif context.reasons or self._may_return(context):
            await self._wait_for_worker(context, refusal)
        else:
            raise self._no_workers(context, refusal)

    def _is_replaced(self, context: RequestContext) -> bool:
        """Its version's workers are gone, those of another that its model has are here, and it may
        still be anybody's. Not one that may have ended a worker: it would be as new there."""
        version, is_bound = context.request.version, context.is_told or context.routed.num_suspected
        return version is not None and not is_bound and self._registry.is_replaced(version)

    def _room(self, context: RequestContext) -> WaitingRoom:
        return self._rooms.room_of(context.request.version)

    def _may_return(self, context: RequestContext) -> bool:
        version = context.request.version
        model = None if version is None else version.model
        return self._registry.may_serve_soon(model, within_s=self._limits.patience_s)

    def _no_workers(self, context: RequestContext, refusal: PlacementRefusal) -> NoWorkers:
        return NoWorkers(self._registry.not_ready(context.request.version) or refusal.reason)

    def _pause_s(self, context: RequestContext) -> float:
        """What was refused by workers, which know better, is asked ever less often."""
        if not context.refused:
            return 0.0
        context.num_pauses = min(context.num_pauses + 1, 10)
        return min(MAX_PAUSE_S, self._limits.full_pause_s * 2.0 ** (context.num_pauses - 1))

    def _begin(self, opened: OpenRequest, placement: Placement) -> None:
        context, now = opened.context, self._clock()
        self._candidates.note_placed(context, placement, now=now)
        known, prefill = self._registry.known_worker, placement.prefill
        prediction = predicted(placement)
        send = context.routed.begin_attempt(
            placement.reason,
            prefill=None if prefill is None else known(prefill),
            decode=known(placement.decode),
            remaining_s=context.ends_at - now,
            prefix_source=placement.prefix_source,
            fork_of=placement.fork_of,
            prediction=prediction,
            sent_s=now - context.begun_at,
        )
        context.note_sent(prediction, now=now)
        opened.origin = self._origin(placement)
        context.alone_since = None
        self._recorder.note_placed(context, placement)
        opened.tell_worker(send, now=now)
        opened.note_told()

    def _origin(self, placement: Placement) -> OpenRequest | None:
        return None if placement.fork_of is None else self._open.get(placement.fork_of.request)

    async def _pause(self, context: RequestContext) -> None:
        """Until a worker may be free of company; loads change without a word."""
        if context.ends_at <= self._clock():
            raise self._deadline_passed(context)
        with suppress(TimeoutError):
            await self._registry.wait_change(timeout_s=HELD_PAUSE_S)

    async def _wait_for_worker(self, context: RequestContext, refusal: PlacementRefusal) -> None:
        """Until the workers change, bounded by patience."""
        now = self._clock()
        if context.alone_since is None:
            context.alone_since = now
        patience_left_s = context.alone_since + self._limits.patience_s - now
        if patience_left_s <= 0 and not context.reasons:
            raise self._no_workers(context, refusal)
        if patience_left_s <= 0:
            why = f"{refusal.reason}; {'; '.join(context.reasons)}"
            raise RequestFailed(why, code="internal", retryable=True)
        if context.ends_at <= now:
            raise self._deadline_passed(context)
        with suppress(TimeoutError):
            wait_s = min(patience_left_s, context.ends_at - now)
            await self._registry.wait_change(timeout_s=wait_s)

    def _note_loss(self, context: RequestContext, loss: PlaceAgain) -> None:
        """Raises RequestFailed when it had too many, RetriesSpent when the fleet had."""
        now = self._clock()
        self._candidates.note_ended(context)
        context.waits_since = now
        context.reasons = [*context.reasons[1 - MAX_REASONS :], loss.why]
        context.hashes.clear()
        context.alone_until = now + APART_S if context.routed.num_suspected else 0.0
        self._recorder.note_loss(context, loss)
        if loss.is_refusal and loss.suspect is not None:
            context.refused.add(loss.suspect)
            context.num_refused += 1
            return
        if loss.suspect is not None:
            context.suspects.add(loss.suspect)
        context.num_lost += 1
        context.num_stalled += loss.is_stall
        if context.num_lost >= self._limits.max_attempts:
            why = f"{context.num_lost} attempts were lost: {'; '.join(context.reasons)}"
            raise RequestFailed(why, code="internal", retryable=True)
        if not self._retries.take_retry(num_open=len(self._open), now=now):
            self._recorder.note_retries_spent(context)
            raise RetriesSpent(f"the fleet's retries are spent: {'; '.join(context.reasons)}")

    def _deadline_passed(self, context: RequestContext) -> RequestFailed:
        why = f"not finished within {context.request.deadline_s:g} s"
        return RequestFailed("; ".join([why, *context.reasons]), code="deadline")


_ENDS = RouterEnds("this router ends")


def _joined_family(context: RequestContext) -> ForkFamily | None:
    """Whose first one it would go on from: as long as it has said nothing itself."""
    request, routed = context.request, context.routed
    return None if request.is_first or routed.generated else request.family


def _undecided_family(context: RequestContext) -> ForkFamily | None:
    family = _joined_family(context)
    return family if family is not None and family.is_undecided else None


async def _decided(family: ForkFamily) -> None:
    """Until its first is under way on a decode worker, or has ended."""
    while family.is_undecided:
        decided = asyncio.Event()
        family.call_when_decided(decided.set)
        await decided.wait()
