"""One request between its placement and its ending: messages in, instructions out.

No clock, no socket: somebody else does what it answers. An attempt is one try on one pair of
workers; when it is lost the next one continues from the prompt and the tokens the client already
has, which is the same stream because sampling depends on (seed, position) alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import msgspec

from protocol.errors import BatonError
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Abort,
    Aborted,
    Decode,
    Emit,
    Failed,
    Finished,
    FinishReason,
    Landed,
    Prefill,
    PrefillDone,
    Sampling,
    Started,
    Ticket,
    ToWorker,
)
from protocol.state_table import Life
from router.requests.events import (
    Condemned,
    GenerationRequest,
    RequestFailed,
    Route,
    Token,
    TooLong,
)
from router.requests.instructions import Deliver, EndWell, GiveUp, Instruction, PlaceAgain, Send
from router.requests.states import REQUEST_TABLE, WITH_WORKERS, RequestEvent, RequestState
from router.requests.trace import AttemptTrace
from router.workers.worker import KnownWorker
from router.workers.worker_messages import WorkerGone, WorkerMessage

MAX_SUSPECTED = 2
"""Workers in a row that may be lost with a request among the last they were given."""
AlreadyEnded = Callable[[Sampling, Sequence[int]], FinishReason | None]
"""Whether these output tokens already end the request: its last worker may have died between
the last token and the message that it was the last."""


@dataclass(slots=True)
class _Leg:
    """One worker's part of the attempt; `open` while it may hold blocks for us."""

    worker: WorkerId
    epoch: Epoch
    open: bool = True

    def instruct(self, message: ToWorker) -> Send:
        return Send(self.worker, self.epoch, message)

    def is_sender(self, message: WorkerMessage) -> bool:
        return message.worker == self.worker and message.epoch == self.epoch


@dataclass(slots=True)
class RoutedRequest:
    """The only writer of its fields is itself; `wire_id` is what the workers call it."""

    request: GenerationRequest
    wire_id: RequestId
    already_ended: AlreadyEnded
    generated: list[int] = field(default_factory=list)
    cached_tokens: int | None = None
    attempts: list[AttemptTrace] = field(default_factory=list)
    outcome: str = ""
    """Once ended: `stop`, `length`, `aborted: ...` or `failed: ...`."""
    num_suspected: int = 0
    """Workers in a row that were lost with it among the last they were given."""
    _prefill: _Leg | None = None
    _decode: _Leg | None = None
    _block_tokens: int = 1
    _num_given: int = 0
    """Output tokens the current attempt was told of; its workers send those that follow."""
    _life: Life[RequestState, RequestEvent] = field(init=False)

    def __post_init__(self) -> None:
        self._life = REQUEST_TABLE.begin(RequestState.PLACING, name=self.wire_id)

    @property
    def state(self) -> RequestState:
        return self._life.state

    @property
    def attempt(self) -> int:
        """Number of the current or last attempt, from 1."""
        return len(self.attempts)

    @property
    def route(self) -> Route:
        last = self.attempts[-1]
        return Route(reason=last.reason, prefill=last.prefill, decode=last.decode)

    def begin_attempt(
        self, reason: str, *, prefill: KnownWorker | None, decode: KnownWorker, remaining_s: float
    ) -> Send:
        """The first message of the next attempt; `reason` says why it goes to these workers."""
        self._move(RequestEvent.ROUTED_ALONE if prefill is None else RequestEvent.ROUTED_APART)
        trace = AttemptTrace(
            attempt=self.attempt + 1,
            reason=reason,
            prefill=None if prefill is None else prefill.id,
            decode=decode.id,
        )
        self.attempts.append(trace)
        self._num_given = len(self.generated)
        self._block_tokens = decode.registration.layout.block_tokens
        self._prefill = None if prefill is None else _Leg(prefill.id, prefill.epoch)
        self._decode = _Leg(decode.id, decode.epoch, open=prefill is None)
        if self._prefill is None:
            return self._decode.instruct(self._decode_message(None, remaining_s))
        return self._prefill.instruct(self._prefill_message(remaining_s))

    def accept_message(self, received: WorkerMessage, *, remaining_s: float) -> list[Instruction]:
        """What to do about one message; nothing if it is of an older attempt or worker."""
        leg = self._leg_of(received)
        message = received.message
        if leg is None or self._life.state not in WITH_WORKERS:
            return []
        if not isinstance(message, WorkerGone) and message.attempt != self.attempt:
            return []
        match message:
            case Emit():
                return self._emit(leg, message)
            case Started():
                return self._started(leg, message, remaining_s)
            case PrefillDone():
                return self._prefill_done(message)
            case Landed():
                return self._landed(message)
            case Finished():
                return self._finished(leg, message)
            case Failed():
                return self._failed(leg, message)
            case Aborted():
                return self._leg_lost(leg, f"{leg.worker} dropped the request")
            case WorkerGone():
                return self._worker_gone(leg, message)
            case _:
                assert_never(message)

    def close(self, reason: str, *, client_left: bool) -> list[Send]:
        """End now, for the client's sake or ours; the aborts to send. Idempotent."""
        if self._life.is_over:
            return []
        self._move(RequestEvent.CLOSED if client_left else RequestEvent.GIVEN_UP)
        self.outcome = f"{'aborted' if client_left else 'failed'}: {reason}"
        self._note(outcome=self.outcome)
        return self._abort_legs(reason)

    def _emit(self, leg: _Leg, emit: Emit) -> list[Instruction]:
        have = len(self.generated)
        if emit.index < have and emit.token_id == self.generated[emit.index]:
            return []
        if emit.index != have:
            late = emit.index < have
            fault = "differs from the one already sent" if late else f"came when {have} was due"
            return self._lost(f"token {emit.index} of {leg.worker} {fault}", suspect=leg.worker)
        self.generated.append(emit.token_id)
        if leg is self._decode:
            self.num_suspected = 0
        token = Token(
            index=emit.index,
            token_id=emit.token_id,
            text=emit.text,
            logprob=emit.logprob,
            top=emit.top,
        )
        return [Deliver(token)]

    def _started(self, leg: _Leg, started: Started, remaining_s: float) -> list[Instruction]:
        if self.state is not RequestState.PREFILL or self._decode is None:
            return []
        if started.ticket.epoch != leg.epoch:
            why = f"{leg.worker} gave a ticket of another epoch"
            return self._lost(why, suspect=leg.worker)
        self._move(RequestEvent.STARTED)
        self._count_cached(started.cached_tokens)
        self._note(
            prefill_cached_tokens=started.cached_tokens,
            prefill_blocks_reused=started.cached_tokens // self._block_tokens,
            prefill_queued_s=started.queued_s,
        )
        self._decode.open = True
        return [self._decode.instruct(self._decode_message(started.ticket, remaining_s))]

    def _prefill_done(self, done: PrefillDone) -> list[Instruction]:
        self._note(
            prefill_cached_tokens=done.cached_tokens,
            prefill_queued_s=done.queued_s,
            prefill_s=done.prefill_s,
        )
        return []

    def _landed(self, landed: Landed) -> list[Instruction]:
        if self.state is not RequestState.HANDOVER:
            return []
        self._move(RequestEvent.LANDED)
        if self._prefill is not None:
            self._prefill.open = False
        self._note(
            transport=landed.transport,
            blocks_reused=landed.blocks_reused,
            blocks_moved=landed.blocks_moved,
            bytes_moved=landed.bytes_moved,
            fetch_s=landed.fetch_s,
            exposed_s=landed.exposed_s,
        )
        return []

    def _finished(self, leg: _Leg, finished: Finished) -> list[Instruction]:
        leg.open = False
        have, due = len(self.generated), self.request.sampling.max_tokens
        if finished.num_tokens != have:
            why = f"{leg.worker} finished at {finished.num_tokens} tokens, of which {have} came"
            return self._lost(why, suspect=leg.worker)
        if finished.reason == "length" and have < due:
            why = f"{leg.worker} finished at {have} of {due} tokens"
            return self._lost(why, suspect=leg.worker)
        self._count_cached(finished.cached_tokens)
        if leg is self._prefill:
            self._note(prefill_queued_s=finished.queued_s, prefill_s=finished.prefill_s)
        else:
            self._note(
                decode_cached_tokens=finished.cached_tokens,
                decode_queued_s=finished.queued_s,
                decode_s=finished.decode_s,
            )
            if self._prefill is None:
                num_reused = finished.cached_tokens // self._block_tokens
                self._note(prefill_s=finished.prefill_s, blocks_reused=num_reused)
        return self._end_well(finished.reason)

    def _failed(self, leg: _Leg, failed: Failed) -> list[Instruction]:
        leg.open = False
        why = f"{leg.worker}: {failed.message}"
        if self._is_spent(leg):
            return []
        match failed.code:
            case "overloaded":
                return self._lost(why, suspect=leg.worker, is_refusal=True)
            case "too_long" if leg is self._prefill:
                return self._lost(why, suspect=leg.worker, is_refusal=True)
            case "source_lost":
                return self._lost(why, suspect=self._prefill.worker if self._prefill else None)
            case "internal" | "broken" if failed.retryable:
                return self._lost(why, suspect=leg.worker)
            case "internal" | "too_long" | "deadline" | "invalid" | "broken":
                error: BatonError = RequestFailed(why, code=failed.code, retryable=failed.retryable)
                if failed.code == "too_long" and not self.generated:
                    error = TooLong(why)
                return self._give_up(why, error)
            case _:
                assert_never(failed.code)

    def _worker_gone(self, leg: _Leg, gone: WorkerGone) -> list[Instruction]:
        """Of the last it was given, one may have ended it: which, shows where it comes alone."""
        why = f"{leg.worker} {gone.reason}"
        if self.wire_id in gone.unheard and not self._is_spent(leg):
            self.num_suspected += 1
            if self.num_suspected >= MAX_SUSPECTED and len(gone.unheard) == 1:
                leg.open = False
                lost = (
                    f"{self.num_suspected} workers were lost, this request the last given to each"
                )
                return self._give_up(why, Condemned(f"{lost}; it is not tried again: {why}"))
        return self._leg_lost(leg, why)

    def _leg_lost(self, leg: _Leg, why: str) -> list[Instruction]:
        leg.open = False
        if self._is_spent(leg):
            return []
        return self._lost(why, suspect=leg.worker)

    def _is_spent(self, leg: _Leg) -> bool:
        """A prefill worker whose blocks have landed elsewhere has nothing more to give."""
        return leg is self._prefill and self.state is RequestState.DECODE

    def _lost(
        self, why: str, *, suspect: WorkerId | None, is_refusal: bool = False
    ) -> list[Instruction]:
        ended = self.already_ended(self.request.sampling, self.generated)
        if ended is not None:
            return self._end_well(ended)
        self._move(RequestEvent.LOST)
        self._note(outcome=why)
        return [*self._abort_legs(why), PlaceAgain(why, suspect, is_refusal)]

    def _end_well(self, reason: FinishReason) -> list[Instruction]:
        self._move(RequestEvent.ENDED_WELL)
        self.outcome = reason
        self._note(outcome=reason)
        return [*self._abort_legs("finished"), EndWell(reason)]

    def _give_up(self, why: str, error: BatonError) -> list[Instruction]:
        self._move(RequestEvent.GIVEN_UP)
        self.outcome = f"failed: {why}"
        self._note(outcome=self.outcome)
        return [*self._abort_legs(why), GiveUp(error)]

    def _abort_legs(self, reason: str) -> list[Send]:
        aborts = []
        for leg in (self._prefill, self._decode):
            if leg is not None and leg.open:
                leg.open = False
                abort = Abort(request=self.wire_id, attempt=self.attempt, reason=reason)
                aborts.append(leg.instruct(abort))
        return aborts

    def _move(self, event: RequestEvent) -> None:
        self._life.move(event, facts=f"attempt {self.attempt}, {len(self.generated)} tokens")

    def _leg_of(self, message: WorkerMessage) -> _Leg | None:
        for leg in (self._decode, self._prefill):
            if leg is not None and leg.is_sender(message):
                return leg
        return None

    def _note(self, **facts: Any) -> None:
        if self.attempts:
            self.attempts[-1] = replace(self.attempts[-1], **facts)

    def _count_cached(self, num_tokens: int) -> None:
        """The first attempt that computed the prompt says what was saved on it."""
        if self.cached_tokens is None:
            self.cached_tokens = max(0, min(num_tokens, len(self.request.token_ids)))

    def _prefill_message(self, remaining_s: float) -> Prefill:
        return Prefill(
            request=self.wire_id,
            attempt=self.attempt,
            token_ids=self.request.token_ids,
            generated=tuple(self.generated[: self._num_given]),
            sampling=self.request.sampling,
            salt=self.request.salt,
            deadline_s=remaining_s,
        )

    def _decode_message(self, ticket: Ticket | None, remaining_s: float) -> Decode:
        asked = self._prefill_message(remaining_s)
        return Decode(**msgspec.structs.asdict(asked), ticket=ticket)
