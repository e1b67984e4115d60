"""One request between its placement and its ending: messages in, instructions out.

No clock, no socket: somebody else does what it answers. An attempt is one try on one pair of
workers; when it is lost the next one continues from the prompt and the tokens the client already
has, which is the same stream because sampling depends on (seed, position) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, assert_never

from protocol.errors import BatonError
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Aborted,
    Emit,
    Failed,
    Finished,
    Landed,
    OfAttempt,
    PrefillDone,
    PrefixPull,
    PrefixSource,
    PromptScores,
    PromptVector,
    Started,
)
from protocol.readings import rows_of
from protocol.state_table import Life
from router.failover.stall import Awaited
from router.requests.attempt import Attempt, Leg
from router.requests.ending import EndWell
from router.requests.events import (
    GenerationRequest,
    PoisonRequest,
    RequestFailed,
    Route,
    TooLong,
)
from router.requests.instructions import Deliver, GiveUp, Instruction, PlaceAgain, Send
from router.requests.reading import ReadingProgress
from router.requests.states import REQUEST_TABLE, WITH_WORKERS, RequestEvent, RequestState
from router.requests.trace import AttemptTrace, Prediction
from router.workers.worker import KnownWorker
from router.workers.worker_messages import WorkerGone, WorkerMessage

Work = Literal["prompt", "token"]
BOTH: Final[frozenset[Work]] = frozenset({"prompt", "token"})
MAX_SUSPECTED = 2
"""Workers in a row that may be lost with a request among the last they were given."""


@dataclass(slots=True)
class RoutedRequest:
    """The only writer of its fields is itself; `wire_id` is what the workers call it."""

    request: GenerationRequest
    wire_id: RequestId
    generated: list[int] = field(default_factory=list)
    cached_tokens: int | None = None
    attempts: list[AttemptTrace] = field(default_factory=list)
    outcome: str = ""
    """Once ended: `stop`, `length`, `aborted: ...` or `failed: ...`."""
    num_suspected: int = 0
    """Workers in a row that were lost with it among the last they were given."""
    _suspected_at: frozenset[Work] = BOTH
    """What all of those may have been lost at."""
    _current: Attempt | None = None
    """The newest attempt, under way or not."""
    _life: Life[RequestState, RequestEvent] = field(init=False)
    _progress: ReadingProgress = field(init=False)
    _speaker: tuple[WorkerId, Epoch, int] | None = None
    """The decode worker and the attempt, once it has said a token of it and nothing is waited for
    besides: what it says next goes straight to the client."""
    _waits: bool = False
    """Decode has finished; what prefill reads of the prompt is not all there."""

    def __post_init__(self) -> None:
        num_prompt = len(self.request.token_ids)
        self._progress = ReadingProgress(lacking=self.request.reading, num_prompt=num_prompt)
        self._life = REQUEST_TABLE.begin(RequestState.PLACING, name=self.wire_id)

    @property
    def state(self) -> RequestState:
        return self._life.state

    @property
    def attempt(self) -> int:
        """Number of the current or last attempt, from 1."""
        return len(self.attempts)

    @property
    def generates(self) -> bool:
        """False: what is left to do is for one worker, that of a prompt and one token at most."""
        most = 0 if self.request.reading is None else 1
        return self._progress.ending is None and self.request.sampling.max_tokens > most

    @property
    def num_reusable(self) -> int:
        """Tokens of the prompt of which nothing but their KV is wanted, from the first on."""
        num_prompt, lacking = len(self.request.token_ids), self._progress.lacking
        num_all = num_prompt + len(self.generated)
        return num_all if lacking is None else rows_of(lacking, num_prompt=num_prompt).start

    @property
    def _attempt(self) -> Attempt:
        assert self._current is not None, "no worker was asked"
        return self._current

    @property
    def route(self) -> Route:
        last = self.attempts[-1]
        return Route(reason=last.reason, prefill=last.prefill, decode=last.decode)

    def begin_attempt(
        self,
        reason: str,
        *,
        prefill: KnownWorker | None,
        decode: KnownWorker,
        remaining_s: float,
        prefix_source: PrefixSource | None = None,
        fork_of: OfAttempt | None = None,
        prediction: Prediction | None = None,
        sent_s: float = 0.0,
    ) -> Send:
        """The first message of the next attempt, `sent_s` after the request came; `reason` says why
        it goes to these workers, and `prediction` what it should come to there."""
        self._move(RequestEvent.ROUTED_ALONE if prefill is None else RequestEvent.ROUTED_APART)
        trace = AttemptTrace(
            attempt=self.attempt + 1,
            reason=reason,
            prefill=None if prefill is None else prefill.id,
            decode=decode.id,
            pulled_from=None if prefix_source is None else prefix_source.worker,
            predicted=prediction,
            sent_s=sent_s,
        )
        self.attempts.append(trace)
        self._waits = False
        self._current = Attempt(
            request=self.request,
            wire_id=self.wire_id,
            number=self.attempt,
            given=tuple(self.generated),
            prefill=None if prefill is None else Leg(prefill.id, prefill.epoch),
            decode=Leg(decode.id, decode.epoch, open=prefill is None),
            block_tokens=decode.registration.layout.block_tokens,
            reading=self._progress.lacking,
            prefix_source=prefix_source,
            fork_of=fork_of,
            generates=self.generates,
            is_ended=self._progress.ending is not None,
        )
        return self._current.first_message(remaining_s)

    def note_first_token(self, seconds: float) -> None:
        """After the attempt was sent; of later ones of it nothing is noted."""
        if not self.attempts[-1].first_token_s:
            self._note(first_token_s=seconds)

    def accept_next(self, emit: Emit, worker: WorkerId, epoch: Epoch) -> bool:
        """Whether this is the token due, of the decode worker, after others of its attempt: it is
        counted, and is to be delivered; that is all. Else `accept_message` says what it means."""
        generated = self.generated
        if emit.index != len(generated) or self._speaker != (worker, epoch, emit.attempt):
            return False
        generated.append(emit.token_id)
        return True

    @property
    def speaker(self) -> tuple[WorkerId, Epoch, int] | None:
        """The worker and the attempt whose next tokens need no look at what they mean."""
        return self._speaker

    def accept_passed(self, token_ids: Sequence[int]) -> None:
        """The client has these of the speaker, in order: each was the token due."""
        self.generated.extend(token_ids)

    def accept_message(self, received: WorkerMessage, *, remaining_s: float) -> list[Instruction]:
        """What to do about one message; nothing if it is of an older attempt or worker."""
        attempt, message = self._current, received.message
        leg = None if attempt is None else attempt.leg_of(received)
        if attempt is None or leg is None or self._life.state not in WITH_WORKERS:
            return []
        if not isinstance(message, WorkerGone) and message.attempt != attempt.number:
            return []
        match message:
            case Emit():
                return self._emit(leg, message)
            case PromptScores() | PromptVector():
                return self._read(leg, message)
            case Started():
                return self._started(leg, message, remaining_s)
            case PrefillDone():
                return self._prefill_done(leg, message)
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

    def give_up_attempt(
        self, why: str, *, suspect: WorkerId, awaited: Awaited
    ) -> list[Instruction]:
        """`suspect` owes something for too long: the attempt under way comes to nothing; nothing if
        none is."""
        if self._life.state not in WITH_WORKERS:
            return []
        self._note(stalled=awaited)
        return self._lost(why, suspect=suspect, is_stall=True)

    def awaited_worker(self) -> tuple[WorkerId, Awaited] | None:
        """Who is to say something next, and what of this attempt; None while it has no workers."""
        attempt = self._current
        if attempt is None or self._life.state not in WITH_WORKERS:
            return None
        has_said = len(self.generated) > len(attempt.given)
        is_prefilled = has_said and self._progress.lacking is None
        leg, state = attempt.decode, self._life.state
        if attempt.prefill is not None and state is not RequestState.DECODE and not is_prefilled:
            leg = attempt.prefill
        return leg.worker, "next_token" if has_said else "first_token"

    @property
    def decoding_leg(self) -> Leg | None:
        """Whose worker was told to decode, and may not have ended; None: none was."""
        told = self._life.state in (RequestState.HANDOVER, RequestState.DECODE)
        return self._attempt.decode if told and self._attempt.generates else None

    @property
    def is_streaming(self) -> bool:
        """Its decode worker has said a token of this attempt, and nothing is waited for besides."""
        return self._speaker is not None

    def close(self, reason: str, *, client_left: bool) -> list[Send]:
        """End now, for the client's sake or ours; the aborts to send. Idempotent."""
        if self._life.is_over:
            return []
        self._move(RequestEvent.CLOSED if client_left else RequestEvent.GIVEN_UP)
        self.outcome = f"{'aborted' if client_left else 'failed'}: {reason}"
        self._note(outcome=self.outcome, num_tokens=self._num_said)
        return self._aborts(reason)

    def _emit(self, leg: Leg, emit: Emit) -> list[Instruction]:
        have = len(self.generated)
        if emit.index < have and emit.token_id == self.generated[emit.index]:
            return []
        if emit.index != have:
            late = emit.index < have
            fault = "differs from the one already sent" if late else f"came when {have} was due"
            return self._lost(f"token {emit.index} of {leg.worker} {fault}", suspect=leg.worker)
        self.generated.append(emit.token_id)
        if leg is self._attempt.decode:
            self.num_suspected = 0
            if self._progress.lacking is None:
                self._speaker = (leg.worker, leg.epoch, emit.attempt)
        return [Deliver(given) for given in self._progress.accept_token(emit)]

    def _read(self, leg: Leg, message: PromptScores | PromptVector) -> list[Instruction]:
        try:
            events = self._progress.accept_read(message)
        except ValueError as error:
            return self._lost(f"{leg.worker} said {error}", suspect=leg.worker)
        waited = self._waits and not self._progress.lacking
        more = self._end(EndWell("length")) if waited else []  # its ending is known
        return [*map(Deliver, events), *more]

    def _started(self, leg: Leg, started: Started, remaining_s: float) -> list[Instruction]:
        if self.state is not RequestState.PREFILL:
            return []
        if started.ticket.epoch != leg.epoch:
            why = f"{leg.worker} gave a ticket of another epoch"
            return self._lost(why, suspect=leg.worker)
        self._move(RequestEvent.STARTED)
        self._note_pull(started.cached_tokens, started.pull)
        self._note(
            prefill_cached_tokens=started.cached_tokens,
            prefill_blocks_reused=started.cached_tokens // self._attempt.block_tokens,
            prefill_queued_s=started.queued_s,
        )
        return [self._attempt.decode_message(started.ticket, remaining_s)]

    def _prefill_done(self, leg: Leg, done: PrefillDone) -> list[Instruction]:
        if self._progress.lacking:
            why = f"{leg.worker} has not said all of the prompt"
            return self._lost(why, suspect=leg.worker)
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
        if self._attempt.prefill is not None:
            self._attempt.prefill.open = False
        self._note(
            transport=landed.transport,
            blocks_reused=landed.blocks_reused,
            blocks_moved=landed.blocks_moved,
            bytes_moved=landed.bytes_moved,
            fetch_s=landed.fetch_s,
            exposed_s=landed.exposed_s,
        )
        return []

    def _finished(self, leg: Leg, finished: Finished) -> list[Instruction]:
        leg.open = False
        if (fault := self._fault(leg, finished)) is not None:
            return self._lost(f"{leg.worker} {fault}", suspect=leg.worker)
        self._note_pull(finished.cached_tokens, finished.pull)
        if leg is self._attempt.prefill:
            self._note(prefill_queued_s=finished.queued_s, prefill_s=finished.prefill_s)
        else:
            self._note(
                decode_cached_tokens=finished.cached_tokens,
                decode_queued_s=finished.queued_s,
                decode_s=finished.decode_s,
            )
            if self._attempt.prefill is None:
                num_reused = finished.cached_tokens // self._attempt.block_tokens
                self._note(prefill_s=finished.prefill_s, blocks_reused=num_reused)
        return self._end(EndWell(finished.reason, finished.stopped_by))

    def _fault(self, leg: Leg, finished: Finished) -> str | None:
        """What the worker has not said before it said that it has finished."""
        attempt, have, due = self._attempt, len(self.generated), self.request.sampling.max_tokens
        if attempt.is_ended:
            have = due = 0
        if finished.num_tokens != have:
            return f"finished at {finished.num_tokens} tokens, of which {have} came"
        if finished.reason == "length" and have < due:
            return f"finished at {have} of {due} tokens"
        if self._progress.lacking and attempt.prefill in (None, leg):
            return "finished, and has not said all of the prompt"
        return None

    def _end(self, ending: EndWell) -> list[Instruction]:
        """The last token was said; prefill may have something to say still."""
        ending = self._progress.ending = self._progress.ending or ending
        self._waits = self._progress.lacking is not None
        return [] if self._waits else self._end_well(ending)

    def _failed(self, leg: Leg, failed: Failed) -> list[Instruction]:
        leg.open = False
        why = f"{leg.worker}: {failed.message}"
        if self._is_spent(leg):
            return []
        match failed.code:
            case "overloaded":
                return self._lost(why, suspect=leg.worker, is_refusal=True)
            case "too_long" if leg is self._attempt.prefill:
                return self._lost(why, suspect=leg.worker, is_refusal=True)
            case "source_lost":
                prefill = self._attempt.prefill
                return self._lost(why, suspect=prefill.worker if prefill else None)
            case "internal" | "broken" if failed.retryable:
                return self._lost(why, suspect=leg.worker)
            case "internal" | "too_long" | "deadline" | "invalid" | "broken" | "grammar":
                error: BatonError = RequestFailed(why, code=failed.code, retryable=failed.retryable)
                if failed.code == "too_long" and not self.generated:
                    error = TooLong(why)
                return self._give_up(why, error)
            case _:
                assert_never(failed.code)

    def _worker_gone(self, leg: Leg, gone: WorkerGone) -> list[Instruction]:
        """Of the last it was given, one may have ended it: which, shows where it comes alone."""
        why = f"{leg.worker} {gone.reason}"
        if self.wire_id in gone.unheard and leg.open and not self._is_spent(leg):
            self._suspect(leg)
            if self.num_suspected >= MAX_SUSPECTED and len(gone.unheard) == 1:
                leg.open = False
                lost = f"{self.num_suspected} workers were lost, it the last given to each"
                return self._give_up(why, PoisonRequest(f"{lost}; it is not tried again: {why}"))
        return self._leg_lost(leg, why)

    def _suspect(self, leg: Leg) -> None:
        """What ends workers ends each at the same work: at its prompt, or at a token of it."""
        attempt = self._attempt
        work: frozenset[Work] = frozenset({"prompt"} if leg is attempt.prefill else {"token"})
        if attempt.prefill is None:
            work = BOTH
        same = work & (self._suspected_at if self.num_suspected else BOTH)
        self.num_suspected = self.num_suspected + 1 if same else 1
        self._suspected_at = same or work

    def _leg_lost(self, leg: Leg, why: str) -> list[Instruction]:
        leg.open = False
        if self._is_spent(leg):
            return []
        return self._lost(why, suspect=leg.worker)

    def _is_spent(self, leg: Leg) -> bool:
        """A prefill worker whose blocks have landed elsewhere has nothing more to give."""
        is_prefill = leg is self._attempt.prefill and self.state is RequestState.DECODE
        return is_prefill and self._progress.lacking is None

    def _lost(
        self,
        why: str,
        *,
        suspect: WorkerId | None,
        is_refusal: bool = False,
        is_stall: bool = False,
    ) -> list[Instruction]:
        ended = self._progress.ending = self._progress.ending or self._known_ending()
        if ended is not None and self._progress.lacking is None:
            return self._end_well(ended)
        self._move(RequestEvent.LOST)
        self._note(outcome=why, num_tokens=self._num_said)
        return [*self._aborts(why), PlaceAgain(why, suspect, is_refusal, is_stall)]

    def _known_ending(self) -> EndWell | None:
        """What the worker that was lost would have said."""
        if self.request.sampling.max_tokens:
            return self.request.already_ended(self.request.sampling, self.generated)
        is_read = self.request.reading is not None and self._progress.lacking is None
        return EndWell("length") if is_read else None

    def _end_well(self, ending: EndWell) -> list[Instruction]:
        self._move(RequestEvent.ENDED_WELL)
        self.outcome = ending.reason
        self._note(outcome=ending.reason, num_tokens=self._num_said)
        return [*self._aborts("finished"), ending]

    def _give_up(self, why: str, error: BatonError) -> list[Instruction]:
        self._move(RequestEvent.GIVEN_UP)
        self.outcome = f"failed: {why}"
        self._note(outcome=self.outcome, num_tokens=self._num_said)
        return [*self._aborts(why), GiveUp(error)]

    @property
    def _num_said(self) -> int:
        return 0 if self._current is None else len(self.generated) - len(self._current.given)

    def _aborts(self, reason: str) -> list[Send]:
        return [] if self._current is None else self._current.aborts(reason)

    def _move(self, event: RequestEvent) -> None:
        self._speaker = None
        self._life.move(event, facts=f"attempt {self.attempt}, {len(self.generated)} tokens")

    def _note(self, **facts: Any) -> None:
        if self.attempts:
            for name, fact in facts.items():
                setattr(self.attempts[-1], name, fact)

    def _note_pull(self, num_cached: int, pull: PrefixPull | None) -> None:
        """What a peer's cache had counts as cached: it was not computed for this request."""
        if pull is None:
            return self._count_cached(num_cached)
        self._note(
            pulled_from=pull.source,
            pulled_tokens=pull.num_tokens,
            pull_outcome=pull.outcome,
            pull_s=pull.seconds,
        )
        return self._count_cached(num_cached + pull.num_tokens)

    def _count_cached(self, num_tokens: int) -> None:
        """The first attempt that computed the prompt says what was saved on it."""
        if self.cached_tokens is None:
            self.cached_tokens = max(0, min(num_tokens, len(self.request.token_ids)))
