"""The decode leg: fetch a prompt's KV from the prefill worker, or compute it, then generate.

Made by `decode_worker.__main__`; driven by `worker.life` (event loop), the engine (its thread,
as observer) and the KV sink (its thread). With a ticket only the blocks that the own prefix cache
lacks are fetched. Reserved blocks go back to the pool only when the sink says that nobody writes
into them. Never decodes from a block that was not verified: a fetch that failed is `source_lost`,
and those of its blocks that had arrived and were verified stay in the prefix cache.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from decode_worker.fetch_metrics import Tally
from engine.batch import SequenceId
from engine.kvcache.windows import NO_BLOCK
from engine.loop import Engine
from engine.sequence import FetchLanded, FetchLost, FetchOutcome, Mode
from engine.speeds import Rate
from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.messages import FetchId
from kvtransfer.sink.events import SinkEvent
from kvtransfer.sink.sink import Sink
from protocol import codec, messages
from protocol.errors import CapacityError, WireError
from protocol.ids import Epoch, RouterId
from protocol.layout import KvLayout
from protocol.messages import Beat, Decode, Prefill, Speeds, Ticket, WorkerState
from protocol.text.tokenizer import TextState
from worker.requests import Job, Key, LastWord
from worker.service import EngineService, failed, name_of

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, kw_only=True)
class DecodeJob(Job):
    ticket: Ticket | None
    fetch: FetchId | None = None
    num_reused_blocks: int = 0
    indices: tuple[int, ...] = ()
    """Of the slots that are fetched."""


class DecodeService(EngineService[DecodeJob]):
    """Implements `worker.life.Service` and `engine.observer.EngineObserver`."""

    def attach(self, *, epoch: Epoch, engine: Engine, sink: Sink, layout: KvLayout) -> None:
        """Before anything is taken. Engine and sink call back, so they are made later."""
        self._epoch, self._engine, self._sink, self._layout = epoch, engine, sink, layout
        self._fetching: dict[Key, DecodeJob] = {}
        self._transfers = Rate()
        self._tally = Tally(self._metrics.transfer)

    # -- the event loop ---------------------------------------------------------------------

    def make_job(
        self, router: RouterId, message: Prefill | Decode, *, sequence: str, text: TextState
    ) -> DecodeJob:
        if isinstance(message, Prefill):
            raise ValueError("Prefill was sent to a decode worker")
        num_tokens = len(message.token_ids) + len(message.generated)
        if message.ticket is not None and message.ticket.num_tokens != num_tokens:
            raise ValueError(f"ticket: of {message.ticket.num_tokens} tokens, not {num_tokens}")
        return DecodeJob(
            router=router,
            request=message.request,
            attempt=message.attempt,
            sequence=sequence,
            text=text,
            deadline_at=time.monotonic() + message.deadline_s,
            ticket=message.ticket,
        )

    def mode(self, job: DecodeJob) -> Mode:
        return Mode.LOCAL if job.ticket is None else Mode.REMOTE

    def hold_transfer(self, job: DecodeJob) -> None:
        if job.ticket is not None:
            self._sink.hold(job.ticket)

    def settle_transfer(self, job: DecodeJob, word: LastWord) -> None:
        if job.fetch is not None:
            self._sink.cancel(job.fetch, reason=name_of(word))
        elif job.ticket is not None:
            self._sink.drop(job.ticket, reason=name_of(word))

    def abort_transfer(self, key: Key) -> None:
        job = self._fetching.get(key)
        if job is not None and job.fetch is not None:
            self._sink.cancel(job.fetch, reason="the request was aborted")

    def drop_transfer(self, message: Prefill | Decode) -> None:
        if isinstance(message, Decode) and message.ticket is not None:
            self._sink.drop(message.ticket, reason="the request was refused")

    def transfers(self) -> list[Key]:
        return list(self._fetching)

    def is_idle(self) -> bool:
        return super().is_idle() and not self._tally.num_quarantined

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
                transfer_bytes_per_s=self._transfers.per_s,
            ),
            transports_used=self._sink.transports_used,
            transports=self._tally.uses.latest(),
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
        if job.ticket is None:
            return
        first = self._layout.num_blocks(num_cached_tokens)
        present = [index for index, block in enumerate(block_table) if block != NO_BLOCK]
        job.num_reused_blocks = bisect_left(present, first)
        job.indices = tuple(present[job.num_reused_blocks :])
        self._fetching[job.key] = job
        try:
            job.fetch = self._sink.fetch(
                ticket=job.ticket,
                indices=job.indices,
                block_ids=[block_table[index] for index in job.indices],
                deadline_s=max(0.0, job.deadline_at - time.monotonic()),
                on_end=lambda end: self._fetched(job, end),
            )
        except (CapacityError, ValueError) as error:
            del self._fetching[job.key]
            self._engine.fetch_done(sequence, FetchLost(str(error)))

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        """Said of HANDOVER only, which never runs here."""

    # -- the sink's thread ------------------------------------------------------------------

    def noticed(self, event: SinkEvent) -> None:
        """What happens on the way."""
        self._tally.noticed(event)

    def quiet(self, block_ids: Sequence[int]) -> None:
        """Nobody writes into these quarantined blocks any more."""
        self._engine.quiet(tuple(block_ids))
        self._tally.quiet(block_ids)

    def _fetched(self, job: DecodeJob, end: FetchEnd) -> None:
        """Nobody writes into the slots any more, but into those that the end quarantines."""
        assert job.ticket is not None
        self._tally.ended(end, peer=job.ticket.worker)
        outcome = self._outcome(job, end)
        if isinstance(end, Landed) and isinstance(outcome, FetchLanded):
            self._desk.say(job, self._landed(job, end))
        self._fetching.pop(job.key, None)
        self._engine.fetch_done(SequenceId(job.sequence), outcome)

    def _outcome(self, job: DecodeJob, end: FetchEnd) -> FetchOutcome:
        match end:
            case Landed():
                return self._first_token(job, end)
            case Lost(error):
                job.failure = job.failure or failed(
                    job, "source_lost", str(error), retryable=error.retryable
                )
                return FetchLost(
                    f"{type(error).__name__}: {error}",
                    num_tokens=self._num_kept(job, end),
                    quarantined=end.quarantined,
                )
            case Aborted(reason):
                return FetchLost(
                    reason, num_tokens=self._num_kept(job, end), quarantined=end.quarantined
                )
            case _:
                assert_never(end)

    def _num_kept(self, job: DecodeJob, end: Lost | Aborted) -> int:
        """Tokens from the first on whose KV is here, as far as any layer still sees it: of the own
        cache, and without a gap after it of the fetch that did not end well."""
        assert job.ticket is not None
        landed = frozenset(end.landed)
        num_groups, num_tokens = self._layout.num_groups, job.ticket.num_tokens
        lacking = next((index for index in job.indices if index not in landed), None)
        num_rows = -(-num_tokens // self._layout.block_tokens)
        if lacking is not None:
            num_rows = lacking // num_groups
        self._tally.kept(bisect_left(job.indices, num_rows * num_groups))
        return min(num_rows * self._layout.block_tokens, num_tokens)

    def _first_token(self, job: DecodeJob, end: Landed) -> FetchOutcome:
        try:
            first = codec.first_token.decode(end.note)
            if not 0 <= first.token_id < self._tokenizer.vocab_size:
                raise WireError(f"token {first.token_id} is not in the vocabulary")
        except WireError as error:
            job.failure = failed(job, "source_lost", f"the source's note: {error}")
            return FetchLost(str(error))
        return FetchLanded(
            first_token=first.token_id,
            first_logprob=first.logprob,
            first_top=tuple((top.token_id, top.logprob) for top in first.top),
        )

    def _landed(self, job: DecodeJob, end: Landed) -> messages.Landed:
        self._measure(end)
        log.info(
            "fetched",
            extra={
                "request": job.request,
                "transport": end.transport,
                "why": end.transport_why,
                "blocks_reused": job.num_reused_blocks,
                "blocks_moved": end.num_blocks,
                "fetch_s": round(end.fetch_s, 6),
                "flow_s": round(end.flow_s, 6),
                "exposed_s": round(end.exposed_s, 6),
            },
        )
        return messages.Landed(
            request=job.request,
            attempt=job.attempt,
            transport=end.transport,
            blocks_reused=job.num_reused_blocks,
            blocks_moved=end.num_blocks,
            bytes_moved=end.num_bytes,
            fetch_s=end.fetch_s,
            exposed_s=end.exposed_s,
        )

    def _measure(self, end: Landed) -> None:
        """Speed is bytes over the time they took to flow, whatever prefill hid of it: placement
        asks what a transfer takes, and itself takes off what the prefill to come will hide."""
        if end.num_bytes:
            self._transfers.add(end.num_bytes, seconds=end.flow_s)
