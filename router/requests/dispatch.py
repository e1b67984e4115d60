"""One request's life: placed, sent, followed, and placed again when a worker is lost.

What a message of a worker means is decided in `router.requests.request`, where to go in
`router.placement.place`; here is the doing, with its deadlines, its patience and its bounds. A
prompt of several choices is as many requests.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import count
from typing import assert_never

from protocol.errors import BatonError, CapacityError
from protocol.ids import RequestId
from protocol.process.metrics import RouterMetrics
from router.placement.place import DEFAULT_RULES, Placement, PlacementRefusal, PlacementRules
from router.placement.prefix_index import PrefixIndex
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.events import (
    Ended,
    GenerationEvent,
    GenerationRequest,
    NoWorkers,
    Placed,
    PoisonRequest,
    Read,
    RequestFailed,
    Token,
    TooLong,
)
from router.requests.instructions import Deliver, EndWell, GiveUp, PlaceAgain, Send
from router.requests.poison import PoisonRequests
from router.requests.recorder import Recorder
from router.requests.request import AlreadyEnded, RoutedRequest
from router.requests.trace import TraceRing
from router.workers.mailbox import Mailbox, Overflowed
from router.workers.registry import Registry
from router.workers.worker_messages import WorkerGone, WorkerMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Bounds of one request's life."""

    max_attempts: int = 4
    """Lost attempts before the request fails. Refusals for lack of room are not counted."""
    patience_s: float = 15.0
    """How long a request that lost its worker waits for one to come back: a supervisor
    restarts a worker within it."""
    max_queued_messages: int = 4_096
    """Tokens a client may lag behind before it is cut off; ~1 MB."""
    full_pause_s: float = 0.25
    """Before asking full workers again for a request whose client already has tokens; twice as
    long each time, at most 2 s. Such a request waits until its own deadline."""
    rules: PlacementRules = DEFAULT_RULES


APART_S = 3.0
"""How long a request that may have ended a worker waits for others that have nobody else."""
HELD_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
MAX_REASONS = 8
"""Of lost attempts told in an error: the last ones. The trace has all."""
_TOO_SLOW = "the client reads more slowly than the model writes"


class Dispatcher:
    """Serves any number of requests at once on one event loop. `clock` is the loop's."""

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
        self._candidates = Candidates(
            index=index, fleet=registry.fleet, workers=registry.known_workers, rules=limits.rules
        )
        self._clock = clock
        self._poison = PoisonRequests()
        self._numbers = count(1)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """As `router.requests.events` says. NoWorkers, TooLong and CapacityError are raised before
        the first event, RequestFailed then or later."""
        context, mailbox = self._open_request(request)
        self._recorder.note_opened()
        closing, client_left = "an error of ours", False
        try:
            async with aclosing(self._follow(context, mailbox)) as events:
                async for event in events:
                    yield event
        except TimeoutError as error:
            failure = self._deadline_passed(context)
            closing = str(failure)
            raise failure from error
        except Overflowed as error:
            closing = _TOO_SLOW
            raise RequestFailed(_TOO_SLOW, code="overloaded") from error
        except BatonError as error:
            closing = str(error)
            if isinstance(error, PoisonRequest):
                self._recorder.note_poison(context, closing)
                self._poison.add(request)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            closing, client_left = "the client is gone", True
            raise
        finally:
            self._candidates.note_ended(context)
            self._registry.close_mailbox(context.routed.wire_id)
            mailbox.close()
            self._close(context.routed, closing, client_left=client_left)
            self._recorder.note_ended(context, now=self._clock())

    def _open_request(self, request: GenerationRequest) -> tuple[RequestContext, Mailbox]:
        """The wire id is unique in this router's life, whatever ids clients choose."""
        wire_id = RequestId(f"{request.id}~{next(self._numbers)}")
        routed = RoutedRequest(request, wire_id, self._already_ended)
        mailbox = Mailbox(
            bound=self._limits.max_queued_messages,
            deadline_s=request.deadline_s,
            # It may never read again: its workers are free at once.
            on_overflow=lambda: self._close(routed, _TOO_SLOW, client_left=False),
        )
        self._registry.open_mailbox(wire_id, mailbox)
        now = self._clock()
        context = RequestContext(routed=routed, begun_at=now, ends_at=now + request.deadline_s)
        context.num_found_before = self._poison.num_times(request)
        if context.num_found_before:
            routed.num_suspected, context.alone_until = 1, now + APART_S
        return context, mailbox

    async def _follow(
        self, context: RequestContext, mailbox: Mailbox
    ) -> AsyncGenerator[GenerationEvent, None]:
        routed = context.routed
        await self._launch(context)
        while True:
            message = await mailbox.get()
            remaining_s = context.ends_at - self._clock()
            for instruction in routed.accept_message(message, remaining_s=remaining_s):
                match instruction:
                    case Send():
                        self._send(context, instruction)
                    case Deliver(event):
                        for told in self._events_of(context, event):
                            yield told
                    case PlaceAgain():
                        self._note_loss(context, instruction)
                        await self._launch(context)
                    case EndWell():
                        for told in self._ended(context, instruction):
                            yield told
                        return
                    case GiveUp(error):
                        raise error
                    case _:
                        assert_never(instruction)

    def _events_of(self, context: RequestContext, event: Token | Read) -> Iterator[GenerationEvent]:
        if isinstance(event, Token):
            self._recorder.note_token(context, now=self._clock())
        yield from self._placed(context)
        yield event

    def _placed(self, context: RequestContext) -> Iterator[Placed]:
        if not context.is_told:
            context.is_told = True
            yield Placed(route=context.routed.route)

    def _ended(self, context: RequestContext, ending: EndWell) -> Iterator[GenerationEvent]:
        yield from self._placed(context)
        trace = context.final_trace = context.trace(now=self._clock())
        yield Ended(
            finish_reason=ending.reason,
            stopped_by=ending.stopped_by,
            cached_tokens=trace.cached_tokens,
            trace=trace,
        )

    def _send(self, context: RequestContext, send: Send) -> None:
        """A worker that cannot be told any more is as good as gone."""
        if not self._registry.post_message(send.worker, send.epoch, send.message):
            gone = WorkerGone("was gone when it was to be told")
            message = WorkerMessage(send.worker, send.epoch, gone)
            self._registry.deliver_message(context.routed.wire_id, message)

    def _close(self, routed: RoutedRequest, why: str, *, client_left: bool) -> None:
        for send in routed.close(why, client_left=client_left):
            self._registry.post_message(send.worker, send.epoch, send.message)

    async def _launch(self, context: RequestContext) -> None:
        """Begin the next attempt, waiting for a worker to come back if one was lost."""
        while True:
            if self._poison.num_times(context.request) > context.num_found_before:
                raise PoisonRequest("a request like it, sent beside it, was the end of two workers")
            placement = self._candidates.place_request(context, now=self._clock())
            if isinstance(placement, Placement):
                return self._begin(context, placement)
            if placement.why in ("held", "saturated"):
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

    def _begin(self, context: RequestContext, placement: Placement) -> None:
        now = self._clock()
        self._candidates.note_placed(context, placement, now=now)
        known, prefill = self._registry.known_worker, placement.prefill
        send = context.routed.begin_attempt(
            placement.reason,
            prefill=None if prefill is None else known(prefill),
            decode=known(placement.decode),
            remaining_s=context.ends_at - now,
            prefix_source=placement.prefix_source,
        )
        context.placed_at = context.placed_at or now
        context.alone_since = None
        self._recorder.note_placed(context, placement)
        self._send(context, send)

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
        self._candidates.note_ended(context)
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
