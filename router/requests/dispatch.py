"""One request's life: placed, sent, followed, and placed again when a worker is lost.

What a message of a worker means is decided in `router.requests.request`, where to go in
`router.placement.place`; here is the doing, with its deadlines, its patience and its bounds. A
prompt of several choices is as many requests.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

from protocol.errors import BatonError, CapacityError
from protocol.ids import RequestId
from protocol.process.metrics import RouterMetrics
from router.placement.place import Placement, PlacementRefusal, Prefer
from router.placement.prefix_index import PrefixIndex
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.events import (
    Ended,
    GenerationRequest,
    NoWorkers,
    PoisonRequest,
    RequestFailed,
    TooLong,
)
from router.requests.instructions import PlaceAgain, Send
from router.requests.open_request import OpenRequest
from router.requests.poison import PoisonRequests
from router.requests.recorder import Recorder
from router.requests.request import AlreadyEnded, RoutedRequest
from router.requests.token_listener import TokenListener
from router.requests.trace import TraceRing
from router.workers.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Bounds of one request's life."""

    max_attempts: int = 4
    """Lost attempts before the request fails. Refusals for lack of room are not counted."""
    patience_s: float = 15.0
    """How long a request that lost its worker waits for one to come back: a supervisor
    restarts a worker within it."""
    full_pause_s: float = 0.25
    """Before asking full workers again for a request whose client already has tokens; twice as
    long each time, at most 2 s. Such a request waits until its own deadline."""
    prefer: Prefer = "cheapest"


APART_S = 3.0
"""How long a request that may have ended a worker waits for others that have nobody else."""
HELD_PAUSE_S = 0.05
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
        already_ended: AlreadyEnded,
        limits: DispatchLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._recorder = Recorder(metrics=metrics, traces=traces)
        self._already_ended = already_ended
        self._limits = limits = limits or DispatchLimits()
        self._candidates = Candidates(index=index, prefer=limits.prefer)
        self._clock = clock
        self._poison = PoisonRequests()
        self._numbers = count(1)
        self._open: dict[RequestId, OpenRequest] = {}

    async def generate(self, request: GenerationRequest, listener: TokenListener) -> Ended:
        """Until the request has ended; meanwhile `listener` is told what its workers say. Raises
        NoWorkers, TooLong and CapacityError before it was told anything, RequestFailed then or
        later, and what the listener raises. Cancelling aborts the request on its workers."""
        opened = self._open_request(request, listener)
        with self._closing(opened):
            async with asyncio.timeout(request.deadline_s):
                return await self._follow(opened)

    def open_requests(self) -> list[OpenRequest]:
        return list(self._open.values())

    def _open_request(self, request: GenerationRequest, listener: TokenListener) -> OpenRequest:
        """The wire id is unique in this router's life, whatever ids clients choose."""
        wire_id = RequestId(f"{request.id}~{next(self._numbers)}")
        routed = RoutedRequest(request, wire_id, self._already_ended)
        now = self._clock()
        context = RequestContext(routed=routed, begun_at=now, ends_at=now + request.deadline_s)
        context.num_found_before = self._poison.num_times(request)
        if context.num_found_before:
            routed.num_suspected, context.alone_until = 1, now + APART_S
        opened = OpenRequest(context, listener, post=self._post, recorder=self._recorder)
        self._open[wire_id] = opened
        self._registry.add_receiver(wire_id, opened)
        self._recorder.note_opened()
        return opened

    @contextmanager
    def _closing(self, opened: OpenRequest) -> Iterator[None]:
        """Whatever its ending: its workers are told, and it is recorded."""
        context = opened.context
        closing, client_left = "an error of ours", False
        try:
            yield
        except TimeoutError as error:
            failure = self._deadline_passed(context)
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
            self._candidates.note_ended(context, self._registry.workers)
            self._registry.remove_receiver(context.routed.wire_id)
            del self._open[context.routed.wire_id]
            opened.close(closing, client_left=client_left)
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

    async def _launch(self, opened: OpenRequest) -> None:
        """Begin the next attempt, waiting for a worker to come back if one was lost."""
        context = opened.context
        while True:
            if self._poison.num_times(context.request) > context.num_found_before:
                raise PoisonRequest("a request like it, sent beside it, was the end of two workers")
            placement = self._candidates.place_request(
                context, self._registry.ready_workers(), now=self._clock()
            )
            if isinstance(placement, Placement):
                return self._begin(opened, placement)
            if placement.why == "held":
                await self._pause(context)
                continue
            if placement.why == "too_long" and not context.reasons:
                raise TooLong(placement.reason)
            if context.refused and not context.routed.generated:
                raise CapacityError(
                    f"every worker is full: {'; '.join(context.reasons)}",
                    retry_after_s=self._retry_after_s(),
                )
            if not context.reasons:
                raise NoWorkers(self._registry.not_ready() or placement.reason)
            await self._wait_for_worker(context, placement)

    def _begin(self, opened: OpenRequest, placement: Placement) -> None:
        context, now = opened.context, self._clock()
        self._candidates.note_placed(context, placement, self._registry.ready_workers(), now=now)
        known, prefill = self._registry.known_worker, placement.prefill
        send = context.routed.begin_attempt(
            placement.reason,
            prefill=None if prefill is None else known(prefill),
            decode=known(placement.decode),
            remaining_s=context.ends_at - now,
        )
        context.placed_at, context.sent_at = context.placed_at or now, now
        context.alone_since = None
        self._recorder.note_placed(context, placement)
        opened.tell_worker(send, now=now)

    async def _pause(self, context: RequestContext) -> None:
        """Until a worker may be free of company; loads change without a word."""
        if context.ends_at <= self._clock():
            raise self._deadline_passed(context)
        with suppress(TimeoutError):
            await self._registry.wait_change(timeout_s=HELD_PAUSE_S)

    async def _wait_for_worker(self, context: RequestContext, refusal: PlacementRefusal) -> None:
        """Until the workers change or, when all were full, for a moment; bounded by patience."""
        now = self._clock()
        if context.alone_since is None:
            context.alone_since = now
        patience_left_s = context.alone_since + self._limits.patience_s - now
        if patience_left_s <= 0:
            why = f"{refusal.reason}; {'; '.join(context.reasons)}"
            raise RequestFailed(why, code="internal", retryable=True)
        if context.ends_at <= now:
            raise self._deadline_passed(context)
        wait_s = min(patience_left_s, context.ends_at - now)
        if context.refused:
            wait_s = min(wait_s, MAX_PAUSE_S, self._limits.full_pause_s * 2**context.num_pauses)
            context.num_pauses = min(context.num_pauses + 1, 10)
        with suppress(TimeoutError):
            await self._registry.wait_change(timeout_s=wait_s)
        context.refused.clear()

    def _note_loss(self, context: RequestContext, loss: PlaceAgain) -> None:
        """Raises RequestFailed when there were too many."""
        self._candidates.note_ended(context, self._registry.workers)
        context.reasons = [*context.reasons[1 - MAX_REASONS :], loss.why]
        context.hashes.clear()
        context.alone_until = self._clock() + APART_S if context.routed.num_suspected else 0.0
        self._recorder.note_loss(context, loss)
        if loss.is_refusal and loss.suspect is not None:
            context.refused.add(loss.suspect)
            return
        if loss.suspect is not None:
            context.suspects.add(loss.suspect)
        context.num_lost += 1
        if context.num_lost >= self._limits.max_attempts:
            why = f"{context.num_lost} attempts were lost: {'; '.join(context.reasons)}"
            raise RequestFailed(why, code="internal", retryable=True)

    def _deadline_passed(self, context: RequestContext) -> RequestFailed:
        why = f"not finished within {context.request.deadline_s:g} s"
        return RequestFailed("; ".join([why, *context.reasons]), code="deadline")

    def _retry_after_s(self) -> float:
        """When the least loaded worker will have computed the prompts that wait there now."""
        waits = [
            worker.beat.load.waiting_tokens / worker.beat.speeds.prefill_tokens_per_s
            for worker in self._registry.ready_workers()
            if worker.beat is not None and worker.beat.speeds.prefill_tokens_per_s > 0
        ]
        return min(30.0, max(1.0, min(waits, default=1.0)))
