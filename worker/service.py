"""Requests on an engine: accepted from routers, run, and each given exactly one ending.

In the event loop, but for what its parts do on their threads. Knows messages and text, but neither
sockets nor transports.
"""

import logging
import time
from itertools import count

from engine.batch import SequenceId
from engine.commands import Submission
from engine.sequence import Mode
from protocol.errors import CapacityError
from protocol.ids import RequestId, RouterId
from protocol.messages import Beat, Computation, Decode, Failed, Speeds, WorkerState
from protocol.process.logs import request_context
from protocol.process.settings import WorkerSettings
from protocol.text.tokenizer import TextState
from worker.endings import REMEDIES, ending_name, failure, nothing_left
from worker.parts import WorkerParts
from worker.reported.uncounted import UncountedRequests
from worker.requests import Job, JobReading, Key, RequestEnding, Transfers, check_request

log = logging.getLogger(__name__)


class EngineService:
    """What a worker does for its routers. In the event loop's thread; never blocks it."""

    def __init__(self, parts: WorkerParts[WorkerSettings], transfers: Transfers) -> None:
        self._epoch = parts.epoch
        self._tokenizer = parts.model.tokenizer
        self._requests = parts.requests
        self._engine = parts.engine
        self._transfers = transfers
        self._metrics = parts.metrics
        self._numbers = count()
        self._uncounted = UncountedRequests()
        parts.metrics.forks.set_function(lambda: parts.engine.stats().num_forked)

    def accept_request(self, router: RouterId, message: Computation) -> None:
        """Accepts it, or ends it at once."""
        with request_context(message.request):
            if not message.deadline_s > 0:
                late = failure(message, "deadline", "the deadline had passed on arrival")
                return self.refuse_request(router, message, late)
            try:
                check_request(message, vocab_size=self._tokenizer.vocab_size)
            except ValueError as error:
                return self.refuse_request(router, message, failure(message, "invalid", str(error)))
            try:
                self._accept(router, message)
            except Exception as error:  # one message of many: the others' worker serves on
                log.exception("request could not be accepted")
                self._refuse_broken(router, message, f"{type(error).__name__}: {error}")
        return None

    def _accept(self, router: RouterId, message: Computation) -> None:
        try:
            mode = self._transfers.mode_of(message)
        except ValueError as error:
            wrong = failure(message, "internal", str(error), retryable=False)
            return self.refuse_request(router, message, wrong)
        job = self._job(router, message, mode)
        if not self._requests.add_job(job):
            log.warning("request came twice", extra={"remedy": "report it"})
        elif any(job.text.feed(token_id).stopped for token_id in message.generated):
            self._end(job, nothing_left(job, message.generated))
        else:
            self._transfers.hold_ticket(job)
            self._submit(job, message)
        return None

    def _refuse_broken(self, router: RouterId, message: Computation, why: str) -> None:
        wrong = failure(message, "internal", why, retryable=False)
        job = self._requests.of_key((router, message.request, message.attempt))
        if job is None:
            return self.refuse_request(router, message, wrong)
        self._engine.abort(job.sequence)
        return self._end(job, wrong)

    def refuse_request(self, router: RouterId, message: Computation, why: Failed) -> None:
        """Ends it without accepting it."""
        told = {"why": why.message, "remedy": REMEDIES[why.code]}
        log.warning("request refused", extra=told)
        self._requests.tell_router(router, why)
        self._transfers.drop_request(message)

    def abort_request(self, router: RouterId, request: RequestId, attempt: int) -> None:
        """The router does not want it any more; an unknown one is no error."""
        self._abort((router, request, attempt))

    def forget_router(self, router: RouterId) -> None:
        """Aborts all that it asked for."""
        for key in [*(job.key for job in self._requests.jobs()), *self._transfers.moving()]:
            if key[0] == router:
                self._abort(key)

    def expire_requests(self, now: float) -> None:
        """Ends those past their deadline."""
        for job in self._requests.jobs():
            if now > job.deadline_at and job.failure is None:
                job.failure = failure(job, "deadline", "the deadline has passed")
                self._abort(job.key)

    def end_all_requests(self, why: str) -> None:
        """So that routers place them elsewhere."""
        for job in self._requests.jobs():
            job.failure = job.failure or failure(job, "overloaded", why)
            self._abort(job.key)
        for key in self._transfers.moving():
            self._transfers.abort_request(key)

    def is_idle(self) -> bool:
        """Nothing runs, and nobody reads or writes our blocks."""
        return not self._requests.jobs() and self._transfers.is_idle()

    def engine_turn_s(self) -> float:
        """As `engine.loop.Engine.turn_s`."""
        return self._engine.turn_s()

    def beat(self, state: WorkerState) -> Beat:
        stats, transfers = self._engine.stats(), self._transfers
        return Beat(
            epoch=self._epoch,
            state=state,
            blocks=stats.blocks,
            load=self._uncounted.added_to(stats.load, num_counted=stats.num_counted),
            speeds=Speeds(
                prefill_tokens_per_s=stats.prefill_tokens_per_s,
                decode_step_s=stats.decode_step_s,
                transfer_bytes_per_s=transfers.speed.bytes_per_s,
                transfer_latency_s=transfers.speed.latency_s,
                step=stats.step,
            ),
            transports_used=transfers.uses.num_fetches(),
            transports=transfers.uses.latest(),
        )

    def _job(self, router: RouterId, message: Computation, mode: Mode) -> Job:
        reading, num_prompt = message.reading, len(message.token_ids)
        return Job(
            router=router,
            request=message.request,
            attempt=message.attempt,
            sequence=SequenceId(f"{message.request}.{message.attempt}#{next(self._numbers)}"),
            text=TextState(self._tokenizer, message.sampling),
            deadline_at=time.monotonic() + message.deadline_s,
            num_tokens=num_prompt + len(message.generated),
            ticket=message.ticket if isinstance(message, Decode) else None,
            transfers=self._transfers,
            mode=mode,
            prefix_source=message.prefix_source,
            reading=reading
            if reading is None
            else JobReading(reading=reading, num_prompt=num_prompt),
        )

    def _submit(self, job: Job, message: Computation) -> None:
        origin = self._origin(job.router, message)
        try:
            self._engine.submit(
                Submission(
                    id=job.sequence,
                    prompt=message.token_ids,
                    generated=message.generated,
                    sampling=message.sampling,
                    salt=message.salt,
                    mode=job.mode,
                    reading=message.reading,
                    priority=message.priority,
                    fork_of=None if origin is None else origin.sequence,
                    pull_tokens=self._transfers.pull_tokens(job),
                )
            )
        except CapacityError as error:
            return self._end(job, failure(job, "overloaded", str(error)))
        is_elsewhere = job.mode is Mode.REMOTE or origin is not None
        return self._uncounted.add_request(num_tokens=0 if is_elsewhere else job.num_tokens)

    def _origin(self, router: RouterId, message: Computation) -> Job | None:
        """Whose prompt it goes on from, if that one has no ending yet."""
        named = message.fork_of if isinstance(message, Decode) else None
        if named is None:
            return None
        return self._requests.of_key((router, named.request, named.attempt))

    def _end(self, job: Job, ending: RequestEnding) -> None:
        """Of a job that the engine does not have."""
        self._transfers.settle_job(job, ending)
        self._metrics.endings.labels(ending_name(ending)).inc()
        self._requests.end_at_once(job, ending)

    def _abort(self, key: Key) -> None:
        job = self._requests.of_key(key)
        if job is not None:
            self._engine.abort(job.sequence)
        self._transfers.abort_request(key)
