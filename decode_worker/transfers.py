"""The decode leg: fetch a prompt's KV from the prefill worker, or compute it, then generate.

With a ticket only the blocks that the own prefix cache lacks are fetched, without one perhaps its
beginning, from a peer's cache. Reserved blocks go back
to the pool only when the sink says that nobody writes into them. Never decodes from a block that
was not verified: a fetch that failed is `source_lost`, and those of its blocks that had arrived and
were verified stay in the prefix cache.
"""

import logging
import time
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from decode_worker.settings import DecodeSettings
from engine.batch import SampledToken
from engine.kvcache.windows import NO_BLOCK
from engine.loop import Engine
from engine.observer import PrefixToPull
from engine.sequence import FetchLanded, FetchLost, FetchOutcome, Mode
from kvtransfer.endings import Aborted, FetchEnd, Landed, LeaseEnd, Lost
from protocol import codec, messages
from protocol.errors import CapacityError, WireError
from protocol.layout import KvLayout
from protocol.messages import Computation, Decode, Prefill, ReadPrompt, Ticket
from worker.endings import ending_name, failure
from worker.parts import WorkerParts
from worker.reported.transfer_speed import TransferSpeed
from worker.requests import Job, Key, RequestEnding, RequestTable
from worker.transfers.canary import CanaryFetches
from worker.transfers.ends import TransferEnds, open_ends
from worker.transfers.lease_metrics import LeaseMetrics
from worker.transport_uses import TransportUses

log = logging.getLogger(__name__)


def open_transfers(parts: WorkerParts[DecodeSettings]) -> "DecodeTransfers":
    """A sink, what counts what it says, its quarantine, and a source that lends prefixes."""
    model = parts.model
    lease_metrics = LeaseMetrics(parts.metrics.transfer, TransportUses())
    return DecodeTransfers(
        ends=open_ends(parts, on_lease_end=_unknown_lease, lease_metrics=lease_metrics),
        layout=model.assembly.layout,
        vocab_size=model.tokenizer.vocab_size,
        engine=parts.engine,
        requests=parts.requests,
    )


def _unknown_lease(end: LeaseEnd) -> None:
    raise AssertionError(f"lease {end.lease} was on no loan")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fetching:
    """A job whose KV is being fetched."""

    job: Job
    ticket: Ticket
    num_reused_blocks: int
    indices: tuple[int, ...]
    """Of the slots that are fetched."""


class DecodeTransfers:
    """Implements `worker.requests.Transfers`: what it moves is fetched."""

    def __init__(
        self,
        *,
        ends: TransferEnds,
        layout: KvLayout,
        vocab_size: int,
        engine: Engine,
        requests: RequestTable,
    ) -> None:
        self._ends = ends
        self._sink = ends.sink
        self._layout = layout
        self._vocab_size = vocab_size
        self._engine = engine
        self._requests = requests
        self._metrics = ends.metrics
        self._quarantine = ends.quarantine
        self._fetching: dict[Key, Job] = {}

    @property
    def uses(self) -> TransportUses:
        return self._ends.uses

    @property
    def canaries(self) -> CanaryFetches:
        return self._ends.canaries

    @property
    def kv_address(self) -> str:
        return self._ends.kv_address

    @property
    def speed(self) -> TransferSpeed:
        return self._metrics.speed

    def mode_of(self, message: Computation) -> Mode:
        if isinstance(message, Prefill):
            raise ValueError("Prefill was sent to a decode worker")
        if isinstance(message, ReadPrompt) or message.ticket is None:
            return Mode.LOCAL
        num_tokens = len(message.token_ids) + len(message.generated)
        if message.ticket.num_tokens != num_tokens:
            raise ValueError(f"ticket: of {message.ticket.num_tokens} tokens, not {num_tokens}")
        return Mode.REMOTE

    def hold_ticket(self, job: Job) -> None:
        if job.ticket is not None:
            self._sink.hold(job.ticket)

    def settle_job(self, job: Job, ending: RequestEnding) -> None:
        if job.fetch is not None:
            self._sink.cancel(job.fetch, reason=ending_name(ending))
        elif job.ticket is not None:
            self._sink.drop(job.ticket, reason=ending_name(ending))

    def abort_request(self, key: Key) -> None:
        self._ends.pulls.cancel_pull(key, "the request was aborted")
        job = self._fetching.get(key)
        if job is not None and job.fetch is not None:
            self._sink.cancel(job.fetch, reason="the request was aborted")

    def drop_request(self, message: Computation) -> None:
        if isinstance(message, Decode) and message.ticket is not None:
            self._sink.drop(message.ticket, reason="the request was refused")

    def moving(self) -> list[Key]:
        return [*self._fetching, *self._ends.pulls.keys()]

    def is_idle(self) -> bool:
        return not self._fetching and self._ends.is_idle()

    def pull_tokens(self, job: Job) -> int:
        return self._ends.pulls.num_tokens(job)

    def close(self) -> None:
        self._ends.close()

    # -- the engine's thread ------------------------------------------------------------------

    def pull(self, job: Job, prefix: PrefixToPull) -> None:
        self._ends.pulls.start_pull(job, prefix)

    def admitted(
        self, job: Job, block_table: tuple[int, ...], num_cached_tokens: int, queued_s: float
    ) -> None:
        if job.ticket is None:
            return
        first = self._layout.num_blocks(num_cached_tokens)
        present = [index for index, block in enumerate(block_table) if block != NO_BLOCK]
        num_reused = bisect_left(present, first)
        fetching = Fetching(
            job=job,
            ticket=job.ticket,
            num_reused_blocks=num_reused,
            indices=tuple(present[num_reused:]),
        )
        self._fetching[job.key] = job
        try:
            job.fetch = self._sink.fetch(
                ticket=job.ticket,
                indices=fetching.indices,
                block_ids=[block_table[index] for index in fetching.indices],
                deadline_s=max(0.0, job.deadline_at - time.monotonic()),
                on_end=partial(self._fetched, fetching),
            )
        except (CapacityError, ValueError) as error:
            del self._fetching[job.key]
            self._engine.fetch_done(job.sequence, FetchLost(str(error)))

    def computed(self, job: Job, num_tokens: int) -> None:
        """Said of HANDOVER only, which never runs here."""

    def ending_told(self, job: Job, ending: RequestEnding) -> None:
        """What moved has heard of it already."""

    # -- the sink's thread ------------------------------------------------------------------

    def _fetched(self, fetching: Fetching, end: FetchEnd) -> None:
        """Nobody writes into the slots any more, but into those that the end quarantines."""
        job = fetching.job
        self._metrics.ended(end, peer=fetching.ticket.worker)
        outcome = self._outcome(fetching, end)
        if isinstance(end, Landed) and isinstance(outcome, FetchLanded):
            self._requests.tell_router(job.router, self._landed(fetching, end))
        self._fetching.pop(job.key, None)
        self._engine.fetch_done(job.sequence, outcome)

    def _outcome(self, fetching: Fetching, end: FetchEnd) -> FetchOutcome:
        job = fetching.job
        match end:
            case Landed():
                return self._first_token(job, end)
            case Lost(error):
                job.failure = job.failure or failure(
                    job, "source_lost", str(error), retryable=error.retryable
                )
                return self._lost(fetching, end, why=f"{type(error).__name__}: {error}")
            case Aborted(reason):
                return self._lost(fetching, end, why=reason)
            case _:
                assert_never(end)

    def _lost(self, fetching: Fetching, end: Lost | Aborted, *, why: str) -> FetchLost:
        self._quarantine.hold(end.quarantined)
        num_kept = self._num_kept(fetching, end)
        return FetchLost(why, num_tokens=num_kept, quarantined=end.quarantined)

    def _num_kept(self, fetching: Fetching, end: Lost | Aborted) -> int:
        """Tokens from the first on whose KV is here, as far as any layer still sees it: of the own
        cache, and without a gap after it of the fetch that did not end well."""
        landed, indices = frozenset(end.landed), fetching.indices
        num_groups, num_tokens = self._layout.num_groups, fetching.ticket.num_tokens
        lacking = next((index for index in indices if index not in landed), None)
        whole = num_groups * -(-num_tokens // self._layout.block_tokens)
        num_rows = (whole if lacking is None else lacking) // num_groups
        self._metrics.kept(bisect_left(indices, num_rows * num_groups))
        return min(num_rows * self._layout.block_tokens, num_tokens)

    def _first_token(self, job: Job, end: Landed) -> FetchOutcome:
        try:
            first = codec.first_token.decode(end.note)
            if not 0 <= first.token_id < self._vocab_size:
                raise WireError(f"token {first.token_id} is not in the vocabulary")
        except WireError as error:
            job.failure = failure(job, "source_lost", f"the source's note: {error}")
            return FetchLost(str(error))
        top = tuple((one.token_id, one.logprob) for one in first.top)
        return FetchLanded(SampledToken(token_id=first.token_id, logprob=first.logprob, top=top))

    def _landed(self, fetching: Fetching, end: Landed) -> messages.Landed:
        job = fetching.job
        log.info(
            "fetched",
            extra={
                "request": job.request,
                "transport": end.transport,
                "why": end.transport_why,
                "blocks_reused": fetching.num_reused_blocks,
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
            blocks_reused=fetching.num_reused_blocks,
            blocks_moved=end.num_blocks,
            bytes_moved=end.num_bytes,
            fetch_s=end.fetch_s,
            exposed_s=end.exposed_s,
        )
