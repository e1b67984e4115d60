"""Requests on an engine: accepted from routers, run, and each given exactly one ending.

Base of the services of the two workers, which add how KV comes or goes. The event loop calls
`take`, `abort`, `expire` and the like, the engine calls the observer's half on its own thread.
Knows messages and text, but neither sockets nor transports.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Generic, assert_never

from engine.batch import SequenceId
from engine.commands import Submission
from engine.loop import Engine
from engine.observer import SequenceToken
from engine.sequence import Abandon, Complete, Fail, HandOver, Mode, Usage, Verdict
from protocol.blocks import BlockChange
from protocol.errors import CapacityError
from protocol.ids import RequestId, RouterId
from protocol.messages import (
    Aborted,
    Decode,
    FailCode,
    Failed,
    Finished,
    Prefill,
    PrefillDone,
    ToRouter,
)
from protocol.process.logs import request_context
from protocol.process.metrics import WorkerMetrics
from protocol.text.tokenizer import TextState, Tokenizer
from worker.requests import Desk, J, Key, LastWord, check_tokens

RETRYABLE: frozenset[FailCode] = frozenset({"overloaded", "source_lost", "internal"})
"""Another worker, or this one a moment later, may do what this one could not now."""

log = logging.getLogger(__name__)


class EngineService(ABC, Generic[J]):
    """`send` and `record` take words from any thread and return at once; `give_up` is told when
    the engine is broken."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        send: Callable[[RouterId, ToRouter], None],
        record: Callable[[Sequence[BlockChange]], None],
        give_up: Callable[[str], None],
        metrics: WorkerMetrics,
    ) -> None:
        self._tokenizer = tokenizer
        self._record = record
        self._give_up = give_up
        self._metrics = metrics
        self._desk: Desk[J] = Desk(send)
        self._numbers = count()
        self._engine: Engine

    # -- what the two workers add -----------------------------------------------------------

    @abstractmethod
    def make_job(
        self, router: RouterId, message: Prefill | Decode, *, sequence: str, text: TextState
    ) -> J:
        """The job for a message. ValueError when this worker cannot do what it says."""

    @abstractmethod
    def mode(self, job: J) -> Mode:
        """How the engine runs it."""

    @abstractmethod
    def hold_transfer(self, job: J) -> None:
        """The job is accepted: keep alive the KV that waits for it elsewhere."""

    @abstractmethod
    def settle_transfer(self, job: J, word: LastWord) -> None:
        """The job has its ending: finish, fail, cancel or drop what moves its KV. Any thread."""

    @abstractmethod
    def abort_transfer(self, key: Key) -> None:
        """KV that still moves for this request, its job ended or not, is not wanted any more."""

    @abstractmethod
    def drop_transfer(self, message: Prefill | Decode) -> None:
        """A request that is not accepted: whoever holds KV for it may let it go."""

    @abstractmethod
    def transfers(self) -> list[Key]:
        """Requests whose KV is read or written by others."""

    # -- the event loop ---------------------------------------------------------------------

    def take(self, router: RouterId, message: Prefill | Decode) -> None:
        """Accepts a request, or ends it at once."""
        with request_context(message.request):
            if message.deadline_s <= 0:
                failure = failed(message, "deadline", "the deadline had passed on arrival")
                return self.refuse(router, message, failure)
            try:
                self._check(message)
                text = TextState(self._tokenizer, message.sampling)
                sequence = f"{message.request}.{message.attempt}#{next(self._numbers)}"
                job = self.make_job(router, message, sequence=sequence, text=text)
            except ValueError as error:
                failure = failed(message, "internal", str(error), retryable=False)
                return self.refuse(router, message, failure)
            if not self._desk.open(job):
                log.warning("request came twice")
            elif any(text.feed(token_id).stopped for token_id in message.generated):
                self._close(job, nothing_left(message))
            else:
                self.hold_transfer(job)
                self._submit(job, message)
        return None

    def refuse(self, router: RouterId, message: Prefill | Decode, failure: Failed) -> None:
        """Ends a request without accepting it."""
        log.warning("request refused", extra={"why": failure.message})
        self._desk.reply(router, failure)
        self.drop_transfer(message)

    def abort(self, router: RouterId, request: RequestId, attempt: int) -> None:
        self._abort((router, request, attempt))

    def forget_router(self, router: RouterId) -> None:
        for key in [*(job.key for job in self._desk.jobs()), *self.transfers()]:
            if key[0] == router:
                self._abort(key)

    def expire(self, now: float) -> None:
        for job in self._desk.jobs():
            if now > job.deadline_at and job.failure is None:
                job.failure = failed(job, "deadline", "the deadline has passed")
                self._abort(job.key)

    def end_all(self, message: str) -> None:
        for job in self._desk.jobs():
            job.failure = job.failure or failed(job, "overloaded", message)
            self._abort(job.key)
        for key in self.transfers():
            self.abort_transfer(key)

    def is_idle(self) -> bool:
        return not self._desk.jobs() and not self.transfers()

    def _abort(self, key: Key) -> None:
        job = self._desk.find(key)
        if job is not None:
            self._engine.abort(SequenceId(job.sequence))
        self.abort_transfer(key)

    def _check(self, message: Prefill | Decode) -> None:
        check_tokens(
            message.token_ids,
            message.generated,
            message.sampling,
            vocab_size=self._tokenizer.vocab_size,
        )

    def _submit(self, job: J, message: Prefill | Decode) -> None:
        try:
            self._engine.submit(
                Submission(
                    id=SequenceId(job.sequence),
                    prompt=message.token_ids,
                    generated=message.generated,
                    sampling=message.sampling,
                    salt=message.salt,
                    mode=self.mode(job),
                )
            )
        except CapacityError as error:
            self._close(job, failed(job, "overloaded", str(error)))

    def _close(self, job: J, word: LastWord) -> None:
        self.settle_transfer(job, word)
        self._count(word)
        self._desk.refuse(job, word)

    # -- the engine thread ------------------------------------------------------------------

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        stopped = set()
        for spoken in tokens:
            job = self._desk.get(spoken.id)
            if job is not None and self._desk.emit(job, index=spoken.index, token=spoken.token):
                stopped.add(spoken.id)
        return stopped

    def ended(self, sequence: SequenceId, verdict: Verdict, usage: Usage) -> None:
        job = self._desk.get(sequence)
        if job is None:
            return
        word = last_word(job, verdict, usage)
        self.settle_transfer(job, word)
        self._count(word)
        self._desk.end(job, word)
        if isinstance(word, Failed):
            with request_context(job.request):
                log.warning("request failed", extra={"code": word.code, "why": word.message})

    def settled(self) -> None:
        num_tokens = self._desk.flush()
        if num_tokens:
            self._metrics.tokens.inc(num_tokens)

    def blocks_changed(self, changes: Sequence[BlockChange]) -> None:
        self._record(changes)

    def broken(self, error: BaseException) -> None:
        self._give_up(f"the engine is broken: {error}")

    def _count(self, word: LastWord) -> None:
        self._metrics.endings.labels(name_of(word)).inc()


def last_word(job: J, verdict: Verdict, usage: Usage) -> LastWord:
    """The engine's verdict as the message that carries it."""
    request, attempt = job.request, job.attempt
    match verdict:
        case Complete(reason):
            return Finished(
                request=request,
                attempt=attempt,
                reason=reason,
                num_tokens=usage.num_tokens,
                cached_tokens=usage.cached_tokens,
                queued_s=usage.queued_s,
                prefill_s=usage.prefill_s,
                decode_s=usage.decode_s,
            )
        case HandOver():
            return PrefillDone(
                request=request,
                attempt=attempt,
                cached_tokens=usage.cached_tokens,
                queued_s=usage.queued_s,
                prefill_s=usage.prefill_s,
            )
        case Fail(code, message, final):
            return job.failure or failed(job, code, message, retryable=False if final else None)
        case Abandon():
            return job.failure or Aborted(request=request, attempt=attempt)
        case _:
            assert_never(verdict)


def failed(
    request: Prefill | Decode | J, code: FailCode, message: str, *, retryable: bool | None = None
) -> Failed:
    return Failed(
        request=request.request,
        attempt=request.attempt,
        code=code,
        message=message,
        retryable=code in RETRYABLE if retryable is None else retryable,
    )


def nothing_left(message: Prefill | Decode) -> Finished:
    """The tokens that the client has end the text already; only the last word was missing."""
    return Finished(
        request=message.request,
        attempt=message.attempt,
        reason="stop",
        num_tokens=len(message.generated),
        cached_tokens=0,
        queued_s=0.0,
        prefill_s=0.0,
        decode_s=0.0,
    )


def name_of(word: LastWord) -> str:
    match word:
        case Finished(reason=reason):
            return reason
        case Failed(code=code):
            return code
        case Aborted():
            return "aborted"
        case PrefillDone():
            return "handed_over"
        case _:
            assert_never(word)
