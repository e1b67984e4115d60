"""One request's life: placed, sent, followed, and placed again when a worker is lost.

The HTTP surface calls `Dispatcher.generate` once per prompt and choice. What a word of a worker
means is decided in `router.requests.request`, where to go in `router.placement.place`; here is the
doing, with its deadlines, its patience and its bounds.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import count
from typing import assert_never

from protocol.errors import BatonError, CapacityError
from protocol.ids import RequestId, WorkerId
from protocol.messages import FinishReason
from protocol.process.metrics import RouterMetrics
from router.placement.place import Choice, Prefer, Refusal
from router.placement.prefix_index import PrefixIndex
from router.requests.candidates import Chooser
from router.requests.context import Journey
from router.requests.events import (
    Ended,
    Event,
    GenerationRequest,
    NoWorkers,
    Placed,
    RequestFailed,
    Route,
    Token,
    TooLong,
)
from router.requests.instructions import Deliver, Finish, GiveUp, PlaceAgain, Send
from router.requests.request import AlreadyEnded, Flight
from router.trace import TraceRing
from router.workers.letters import Gone, Letter
from router.workers.mailbox import Mailbox, Overflowed
from router.workers.registry import Registry
from router.workers.worker import LiveWorker

log = logging.getLogger("baton.dispatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Bounds of one request's life."""

    max_attempts: int = 4
    """Lost attempts before the request fails. Refusals for lack of room are not counted."""
    patience_s: float = 15.0
    """How long a request that lost its worker waits for one to come back: a supervisor
    restarts a worker within it."""
    max_queued_words: int = 4_096
    """Tokens a client may lag behind before it is cut off; ~1 MB."""
    full_pause_s: float = 0.25
    """Before asking full workers again for a request whose client already has tokens; twice as
    long each time, at most 2 s. Such a request waits until its own deadline."""
    prefer: Prefer = "cheapest"


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
        self._metrics = metrics
        self._traces = traces
        self._already_ended = already_ended
        self._limits = limits = limits or DispatchLimits()
        self._chooser = Chooser(registry=registry, index=index, prefer=limits.prefer)
        self._clock = clock
        self._numbers = count(1)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """`Placed`, then `Token`s, then one `Ended`. Closing it aborts on every worker.

        Raises NoWorkers, TooLong and CapacityError before the first event; RequestFailed then
        or later.
        """
        journey = self._set_out(request)
        self._metrics.active.inc()
        closing, client_left = "an error of ours", False
        try:
            async with aclosing(self._follow(journey)) as events:
                async for event in events:
                    yield event
        except TimeoutError as error:
            failure = self._deadline_passed(journey)
            closing = str(failure)
            raise failure from error
        except Overflowed as error:
            closing = _TOO_SLOW
            raise RequestFailed(_TOO_SLOW, code="overloaded") from error
        except BatonError as error:
            closing = str(error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            closing, client_left = "the client is gone", True
            raise
        finally:
            self._chooser.note_ended(journey)
            self._registry.close_mailbox(journey.flight.wire_id)
            journey.mailbox.close()
            for send in journey.flight.close(closing, client_left=client_left):
                self._registry.post(send.worker, send.epoch, send.message)
            self._metrics.active.dec()
            self._record(journey)

    # -- the way --------------------------------------------------------------------------

    def _set_out(self, request: GenerationRequest) -> Journey:
        """The wire id is unique in this router's life, whatever ids clients choose."""
        wire_id = RequestId(f"{request.id}~{next(self._numbers)}")
        flight = Flight(request, wire_id, self._already_ended)
        mailbox = Mailbox(
            bound=self._limits.max_queued_words,
            deadline_s=request.deadline_s,
            on_overflow=lambda: self._cut_off(flight),
        )
        self._registry.open_mailbox(wire_id, mailbox)
        now = self._clock()
        return Journey(
            flight=flight, mailbox=mailbox, begun_at=now, ends_at=now + request.deadline_s
        )

    async def _follow(self, journey: Journey) -> AsyncGenerator[Event, None]:
        flight = journey.flight
        await self._launch(journey)
        while True:
            letter = await journey.mailbox.get()
            remaining_s = journey.ends_at - self._clock()
            for instruction in flight.handle(letter, remaining_s=remaining_s):
                match instruction:
                    case Send():
                        self._send(journey, instruction)
                    case Deliver(token):
                        for event in self._events_of(journey, token):
                            yield event
                    case PlaceAgain():
                        self._note_loss(journey, instruction)
                        await self._launch(journey)
                    case Finish(reason):
                        for event in self._ended(journey, reason):
                            yield event
                        return
                    case GiveUp(error):
                        raise error
                    case _:
                        assert_never(instruction)

    def _events_of(self, journey: Journey, token: Token) -> Iterator[Event]:
        now = self._clock()
        if journey.first_token_at is None:
            journey.first_token_at = now
            self._metrics.first_token_s.observe(now - journey.begun_at)
            yield Placed(route=journey.flight.route)
        else:
            self._metrics.between_tokens_s.observe(now - journey.last_token_at)
        journey.last_token_at = now
        yield token

    def _ended(self, journey: Journey, reason: FinishReason) -> Iterator[Event]:
        if journey.first_token_at is None:
            yield Placed(route=journey.flight.route)
        trace = journey.final_trace = journey.trace(now=self._clock())
        yield Ended(finish_reason=reason, cached_tokens=trace.cached_tokens, trace=trace)

    def _send(self, journey: Journey, send: Send) -> None:
        """A worker that cannot be told any more is as good as gone."""
        if not self._registry.post(send.worker, send.epoch, send.message):
            gone = Gone("was gone when it was to be told")
            journey.mailbox.put(Letter(send.worker, send.epoch, gone))

    def _cut_off(self, flight: Flight) -> None:
        """The client reads too slowly: free its workers now, it may never read again."""
        for send in flight.close(_TOO_SLOW, client_left=False):
            self._registry.post(send.worker, send.epoch, send.message)

    # -- placing --------------------------------------------------------------------------

    async def _launch(self, journey: Journey) -> None:
        """Begin the next attempt, waiting for a worker to come back if one was lost."""
        while True:
            choice = self._chooser.choose(journey, now=self._clock())
            if isinstance(choice, Choice):
                return self._begin(journey, choice)
            if choice.why == "too_long" and not journey.reasons:
                raise TooLong(choice.reason)
            if journey.refused and not journey.flight.generated:
                raise CapacityError(
                    f"every worker is full: {'; '.join(journey.reasons)}",
                    retry_after_s=self._retry_after_s(),
                )
            if not journey.reasons:
                raise NoWorkers(self._registry.not_ready() or choice.reason)
            await self._wait_for_worker(journey, choice)

    def _begin(self, journey: Journey, choice: Choice) -> None:
        now = self._clock()
        self._chooser.note_chosen(journey, choice, now=now)
        decode = self._live(choice.decode)
        send = journey.flight.launch(
            Route(reason=choice.reason, prefill=choice.prefill, decode=choice.decode),
            prefill_epoch=self._live(choice.prefill).epoch if choice.prefill is not None else None,
            decode_epoch=decode.epoch,
            block_tokens=decode.registration.layout.block_tokens,
            remaining_s=journey.ends_at - now,
        )
        journey.placed_at = journey.placed_at or now
        journey.alone_since = None
        self._note_placed(journey, choice)
        self._send(journey, send)

    def _live(self, worker: WorkerId) -> LiveWorker:
        live = self._registry.incarnation(worker)
        assert live is not None, f"{worker} was chosen and is unknown"
        return live

    async def _wait_for_worker(self, journey: Journey, refusal: Refusal) -> None:
        """Until the workers change or, when all were full, for a moment; bounded by patience."""
        now = self._clock()
        if journey.alone_since is None:
            journey.alone_since = now
        patience_left_s = journey.alone_since + self._limits.patience_s - now
        if patience_left_s <= 0:
            why = f"{refusal.reason}; {'; '.join(journey.reasons)}"
            raise RequestFailed(why, code="internal", retryable=True)
        if journey.ends_at <= now:
            raise self._deadline_passed(journey)
        wait_s = min(patience_left_s, journey.ends_at - now)
        if journey.refused:
            wait_s = min(wait_s, MAX_PAUSE_S, self._limits.full_pause_s * 2**journey.num_pauses)
            journey.num_pauses = min(journey.num_pauses + 1, 10)
        with suppress(TimeoutError):
            await self._registry.wait_change(timeout_s=wait_s)
        journey.refused.clear()

    # -- accounts -------------------------------------------------------------------------

    def _note_placed(self, journey: Journey, choice: Choice) -> None:
        kind = "apart" if choice.prefill is not None else "alone"
        why = "retry" if journey.reasons else "first"
        self._metrics.routes.labels(kind=kind, reason=why).inc()
        extra = {"request": journey.flight.wire_id, "attempt": journey.flight.attempt}
        pair = {"prefill": choice.prefill, "decode": choice.decode}
        log.info("placed", extra={**extra, **pair, "why": choice.reason})

    def _note_loss(self, journey: Journey, loss: PlaceAgain) -> None:
        """Raises RequestFailed when there were too many."""
        self._chooser.note_ended(journey)
        journey.reasons = [*journey.reasons[1 - MAX_REASONS :], loss.why]
        journey.hashes.clear()
        kind = "refused" if loss.is_refusal else "lost"
        self._metrics.retries.labels(why=kind).inc()
        extra = {"request": journey.flight.wire_id, "attempt": journey.flight.attempt}
        log.warning("attempt lost", extra={**extra, "why": loss.why})
        if loss.is_refusal and loss.suspect is not None:
            journey.refused.add(loss.suspect)
            return
        if loss.suspect is not None:
            journey.suspects.add(loss.suspect)
        journey.num_lost += 1
        if journey.num_lost >= self._limits.max_attempts:
            why = f"{journey.num_lost} attempts were lost: {'; '.join(journey.reasons)}"
            raise RequestFailed(why, code="internal", retryable=True)

    def _deadline_passed(self, journey: Journey) -> RequestFailed:
        why = f"not finished within {journey.request.deadline_s:g} s"
        return RequestFailed("; ".join([why, *journey.reasons]), code="deadline")

    def _retry_after_s(self) -> float:
        """When the least loaded worker will have computed the prompts that wait there now."""
        waits = [
            worker.beat.load.waiting_tokens / worker.beat.speeds.prefill_tokens_per_s
            for worker in self._registry.ready_workers()
            if worker.beat is not None and worker.beat.speeds.prefill_tokens_per_s > 0
        ]
        return min(30.0, max(1.0, min(waits, default=1.0)))

    def _record(self, journey: Journey) -> None:
        flight, metrics = journey.flight, self._metrics
        self._traces.add(journey.final_trace or journey.trace(now=self._clock()))
        metrics.endings.labels(ending=flight.outcome.partition(":")[0]).inc()
        metrics.prompt_tokens.inc(len(journey.request.token_ids))
        metrics.cached_tokens.inc(flight.cached_tokens or 0)
        metrics.output_tokens.inc(len(flight.generated))
        metrics.request_s.observe(self._clock() - journey.begun_at)
        for attempt in flight.attempts:
            if attempt.transport:
                metrics.exposed_s.labels(attempt.transport).observe(attempt.exposed_s)
