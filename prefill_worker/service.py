"""The prefill leg: compute a prompt, sample one token, lend the blocks to whoever decodes.

Made by `prefill_worker.__main__`; driven by `worker.life` (event loop), the engine (its thread,
as observer) and the KV source (its thread). Each request's words leave in order: Started, the
token, then one ending. A lease may outlive its request; its end frees the blocks.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass

from engine.batch import SampledToken, SequenceId
from engine.loop import Engine
from engine.sequence import Mode
from kvtransfer.endings import LeaseEnd
from kvtransfer.source.source import Source
from protocol import codec
from protocol.errors import CapacityError
from protocol.ids import Epoch, LeaseId, RouterId
from protocol.messages import (
    Beat,
    Decode,
    Finished,
    FirstToken,
    Prefill,
    PrefillDone,
    Speeds,
    Started,
    WorkerState,
)
from protocol.text.tokenizer import TextState
from worker.requests import Job, Key, LastWord, wire_top
from worker.service import EngineService, failed, name_of
from worker.transport_uses import Uses

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class PrefillJob(Job):
    num_tokens: int
    """Of the prompt and what was generated before: the lease covers their KV."""
    lease: LeaseId | None = None


class PrefillService(EngineService[PrefillJob]):
    """Implements `worker.life.Service` and `engine.observer.EngineObserver`."""

    def attach(self, *, epoch: Epoch, engine: Engine, source: Source) -> None:
        """Before anything is taken. Engine and source call back, so they are made later."""
        self._epoch, self._engine, self._source = epoch, engine, source
        self._lent: dict[LeaseId, tuple[SequenceId, Key]] = {}
        self._leases: dict[Key, LeaseId] = {}
        self._used: Counter[str] = Counter()
        self._uses = Uses()
        self._failing: list[tuple[LeaseId, str]] = []
        """Leases to fail once the router has been told why."""

    # -- the event loop ---------------------------------------------------------------------

    def make_job(
        self, router: RouterId, message: Prefill | Decode, *, sequence: str, text: TextState
    ) -> PrefillJob:
        if isinstance(message, Decode):
            raise ValueError("Decode was sent to a prefill worker")
        return PrefillJob(
            router=router,
            request=message.request,
            attempt=message.attempt,
            sequence=sequence,
            text=text,
            deadline_at=time.monotonic() + message.deadline_s,
            num_tokens=len(message.token_ids) + len(message.generated),
        )

    def mode(self, job: PrefillJob) -> Mode:
        return Mode.HANDOVER

    def hold_transfer(self, job: PrefillJob) -> None:
        """Nothing is fetched here."""

    def settle_transfer(self, job: PrefillJob, word: LastWord) -> None:
        """The decode worker must not hear of an end before the router does, or it would call the
        source lost. A request that its first token ended is left for the router to abort: the
        decode worker then gives the lease back."""
        if job.lease is None or isinstance(word, Finished):
            return
        if isinstance(word, PrefillDone):
            self._source.finish(job.lease, _note(job.emits[-1][1]), awaited=True)
        else:
            self._failing.append((job.lease, name_of(word)))

    def abort_transfer(self, key: Key) -> None:
        lease = self._leases.get(key)
        if lease is not None:
            self._source.fail(lease, "the request was aborted")

    def drop_transfer(self, message: Prefill | Decode) -> None:
        """Nothing is lent before admission."""

    def transfers(self) -> list[Key]:
        return list(self._leases)

    def beat(self, state: WorkerState) -> Beat:
        stats = self._engine.stats()
        return Beat(
            epoch=self._epoch,
            state=state,
            blocks=stats.blocks,
            load=stats.load,
            speeds=Speeds(
                prefill_tokens_per_s=stats.prefill_tokens_per_s,
                decode_step_s=stats.decode_step_s,
                transfer_bytes_per_s=0.0,
            ),
            transports_used=tuple(sorted(self._used.copy().items())),
            transports=self._uses.latest(),
        )

    # -- the source's thread ----------------------------------------------------------------

    def lease_ended(self, end: LeaseEnd) -> None:
        """Nobody may read the blocks any more."""
        sequence, key = self._lent.pop(end.lease)
        self._engine.release(sequence)
        self._leases.pop(key, None)
        self._measure(end)
        log.info(
            "lease ended",
            extra={
                "request": key[1],
                "reason": end.reason,
                "detail": end.detail,
                "transport": end.transport,
                "blocks": end.num_blocks,
            },
        )

    def _measure(self, end: LeaseEnd) -> None:
        metrics = self._metrics.transfer
        metrics.leases.set(len(self._lent))
        metrics.lease_ends.labels(end.reason).inc()
        if not end.transport:
            return
        metrics.lent_bytes.labels(end.transport).inc(end.num_bytes)
        if end.reason == "released":
            self._used[end.transport] += 1
            self._uses.add(
                peer=end.peer,
                transport=end.transport,
                why="chosen by the fetching side",
                num_bytes=end.num_bytes,
            )

    # -- the engine thread ------------------------------------------------------------------

    def admitted(
        self,
        sequence: SequenceId,
        block_table: tuple[int, ...],
        generations: tuple[int, ...],
        num_cached_tokens: int,
        queued_s: float,
    ) -> None:
        job = self._desk.get(sequence)
        assert job is not None, f"{sequence} was admitted after its ending"
        try:
            ticket = self._source.open_lease(block_ids=block_table, num_tokens=job.num_tokens)
        except CapacityError as error:
            job.failure = failed(job, "overloaded", str(error))
            self._engine.abort(sequence)
            self._engine.release(sequence)
            return
        job.lease = ticket.lease
        self._lent[ticket.lease] = (sequence, job.key)
        self._metrics.transfer.leases.set(len(self._lent))
        self._leases[job.key] = ticket.lease
        # Cached tokens may be of a step that is on its way. On a GPU the mark is of the calling
        # thread's current stream, and the runner has made that the one it launches on.
        self._source.publish(ticket.lease, num_cached_tokens)
        self._desk.say(
            job,
            Started(
                request=job.request,
                attempt=job.attempt,
                ticket=ticket,
                cached_tokens=num_cached_tokens,
                queued_s=queued_s,
            ),
        )

    def settled(self) -> None:
        super().settled()
        failing, self._failing = self._failing, []
        for lease, why in failing:
            self._source.fail(lease, why)

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        job = self._desk.get(sequence)
        if job is not None and job.lease is not None:
            # Said when the step's tokens are read, so its KV is written. A mark would be behind
            # the step launched since, and each block announced a step too late.
            self._source.publish(job.lease, num_tokens, awaited=True)


def _note(token: SampledToken) -> bytes:
    return codec.first_token.encode(
        FirstToken(token_id=token.token_id, logprob=token.logprob, top=wire_top(token))
    )
