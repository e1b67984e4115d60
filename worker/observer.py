"""What the engine says, turned into what routers, transfers, metrics and Redis are told.

On the engine's thread. Knows messages and text, but neither sockets nor transports.
"""

import logging
from collections.abc import Callable, Collection, Sequence

from engine.batch import RowsRead, SequenceId
from engine.observer import PrefixToPull, SequenceToken
from engine.sequence import SequenceUsage, Verdict
from protocol.blocks import BlockChange
from protocol.messages import Failed, Finished
from protocol.process.logs import request_context
from protocol.process.metrics import WorkerMetrics
from worker.endings import REMEDIES, ending_message, ending_name, failure
from worker.requests import Job, RequestEnding, RequestTable

log = logging.getLogger(__name__)


class WorkerObserver:
    """An `engine.observer.EngineObserver`. `record` takes changes of the prefix cache and returns
    at once; `give_up` is told that the engine is broken."""

    def __init__(
        self,
        *,
        requests: RequestTable,
        metrics: WorkerMetrics,
        record: Callable[[Sequence[BlockChange]], None],
        give_up: Callable[[str], None],
    ) -> None:
        self._requests = requests
        self._metrics = metrics
        self._record = record
        self._give_up = give_up

    def admitted(
        self,
        sequence: SequenceId,
        block_table: tuple[int, ...],
        generations: tuple[int, ...],
        num_cached_tokens: int,
        queued_s: float,
    ) -> None:
        job = self._requests.of_sequence(sequence)
        assert job is not None, f"{sequence} was admitted after its ending"
        job.transfers.admitted(job, block_table, num_cached_tokens, queued_s)

    def pull(self, sequence: SequenceId, prefix: PrefixToPull) -> None:
        job = self._requests.of_sequence(sequence)
        assert job is not None, f"{sequence} pulls after its ending"
        job.transfers.pull(job, prefix)

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        job = self._requests.of_sequence(sequence)
        if job is not None:
            job.transfers.computed(job, num_tokens)

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None:
        job = self._requests.of_sequence(sequence)
        if job is not None:
            self._requests.add_rows(job, first=first, read=read)

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        requests, stopped = self._requests, set()
        for spoken in tokens:
            job = requests.of_sequence(spoken.id)
            if job is None:
                continue
            try:
                stops = requests.add_token(job, index=spoken.index, token=spoken.token)
            except Exception as error:
                self._end(job, _untold(job, error))
                stops = True
            if stops:
                stopped.add(spoken.id)
        return stopped

    def ended(self, sequence: SequenceId, verdict: Verdict, usage: SequenceUsage) -> None:
        job = self._requests.of_sequence(sequence)
        if job is None:
            return
        message = ending_message(job, verdict, usage)
        if isinstance(message, Finished):
            try:
                self._requests.end_text(job)
            except Exception as error:
                message = _untold(job, error)
        self._end(job, message)

    def _end(self, job: Job, message: RequestEnding) -> None:
        job.transfers.settle_job(job, message)
        self._metrics.endings.labels(ending_name(message)).inc()
        self._requests.end_job(job, message)
        if isinstance(message, Failed):
            why = {"code": message.code, "why": message.message, "remedy": REMEDIES[message.code]}
            with request_context(job.request):
                log.warning("request failed", extra=why)

    def settled(self) -> None:
        num_tokens = self._requests.flush_step()
        if num_tokens:
            self._metrics.tokens.inc(num_tokens)

    def blocks_changed(self, changes: Sequence[BlockChange]) -> None:
        self._record(changes)

    def broken(self, error: BaseException) -> None:
        self._give_up(f"the engine is broken: {error}")


def _untold(job: Job, error: Exception) -> Failed:
    """Its tokens make no text: that ends this request, not its neighbours."""
    with request_context(job.request):
        log.error("text failed; its request has failed", exc_info=error)
    return failure(job, "internal", f"its text: {type(error).__name__}: {error}", retryable=False)
