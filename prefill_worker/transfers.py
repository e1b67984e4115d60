"""The prefill leg: compute a prompt, sample one token, lend the blocks to whoever decodes.

What is told of a request leaves in order: Started, the token, then one ending.
"""

from typing import assert_never

from engine.batch import SampledToken
from engine.loop import Engine
from engine.observer import PrefixToPull
from engine.sequence import Mode
from prefill_worker.lent import LentLeases
from prefill_worker.settings import PrefillSettings
from protocol import codec
from protocol.errors import CapacityError
from protocol.messages import (
    Aborted,
    Computation,
    Decode,
    Failed,
    FirstToken,
    Prefill,
    PrefillDone,
    ReadPrompt,
    Started,
)
from worker.endings import ending_name, failure
from worker.parts import WorkerParts
from worker.reported.transfer_speed import TransferSpeed
from worker.requests import Job, Key, RequestEnding, RequestTable, wire_top
from worker.transfers.canary import CanaryFetches
from worker.transfers.ends import TransferEnds, open_ends
from worker.transfers.lease_metrics import LeaseMetrics
from worker.transport_uses import TransportUses


def open_transfers(parts: WorkerParts[PrefillSettings]) -> "PrefillTransfers":
    """A source, the leases on its blocks, and a sink for prefixes that others have cached."""
    lease_metrics = LeaseMetrics(parts.metrics.transfer, TransportUses())
    lent = LentLeases(parts.engine, parts.metrics.transfer, lease_metrics)
    ends = open_ends(parts, on_lease_end=lent.ended, lease_metrics=lease_metrics)
    return PrefillTransfers(ends=ends, lent=lent, engine=parts.engine, requests=parts.requests)


class PrefillTransfers:
    """Implements `worker.requests.Transfers`: what it moves is lent, prefixes apart."""

    def __init__(
        self, *, ends: TransferEnds, lent: LentLeases, engine: Engine, requests: RequestTable
    ) -> None:
        self._ends = ends
        self._source = ends.source
        self._lent = lent
        self._engine = engine
        self._requests = requests

    @property
    def speed(self) -> TransferSpeed:
        return self._ends.metrics.speed

    @property
    def uses(self) -> TransportUses:
        return self._ends.uses

    @property
    def canaries(self) -> CanaryFetches:
        return self._ends.canaries

    @property
    def kv_address(self) -> str:
        return self._ends.kv_address

    def mode_of(self, message: Computation) -> Mode:
        match message:
            case Prefill():
                return Mode.HANDOVER
            case ReadPrompt():
                return Mode.LOCAL
            case Decode():
                raise ValueError("Decode was sent to a prefill worker")
            case _:
                assert_never(message)

    def hold_ticket(self, job: Job) -> None:
        """Nothing that waits elsewhere is fetched here."""

    def settle_job(self, job: Job, ending: RequestEnding) -> None:
        self._ends.pulls.cancel_pull(job.key, ending_name(ending))
        if job.lease is not None and isinstance(ending, PrefillDone):
            self._source.finish(job.lease, _note(job.emits[-1][1]), awaited=True)

    def ending_told(self, job: Job, ending: RequestEnding) -> None:
        """The decode worker must not hear of a failure before the router does, or it would call the
        source lost. A request that its first token ended is left for the router to abort: the
        decode worker then gives the lease back."""
        if job.lease is not None and isinstance(ending, Failed | Aborted):
            self._source.fail(job.lease, ending_name(ending))

    def abort_request(self, key: Key) -> None:
        self._ends.pulls.cancel_pull(key, "the request was aborted")
        lease = self._lent.of_key(key)
        if lease is not None:
            self._source.fail(lease, "the request was aborted")

    def drop_request(self, message: Computation) -> None:
        """Nothing is lent before admission."""

    def moving(self) -> list[Key]:
        return [*self._lent.keys(), *self._ends.pulls.keys()]

    def is_idle(self) -> bool:
        return not self._lent.keys() and self._ends.is_idle()

    def pull_tokens(self, job: Job) -> int:
        return self._ends.pulls.num_tokens(job)

    def pull(self, job: Job, prefix: PrefixToPull) -> None:
        self._ends.pulls.start_pull(job, prefix)

    def admitted(
        self, job: Job, block_table: tuple[int, ...], num_cached_tokens: int, queued_s: float
    ) -> None:
        if job.mode is not Mode.HANDOVER:
            return  # whoever asked wants nothing of the blocks
        try:
            ticket = self._source.open_lease(block_ids=block_table, num_tokens=job.num_tokens)
        except CapacityError as error:
            job.failure = failure(job, "overloaded", str(error))
            self._engine.abort(job.sequence)
            self._engine.release(job.sequence)
            return
        job.lease = ticket.lease
        self._lent.add(ticket.lease, job.sequence, job.key)
        # Cached tokens may be of a step that is on its way. On a GPU the mark is of the calling
        # thread's current stream, and the runner has made that the one it launches on.
        self._source.publish(ticket.lease, num_cached_tokens)
        num_pulled = 0 if job.pull is None else job.pull.num_tokens
        started = Started(
            request=job.request,
            attempt=job.attempt,
            ticket=ticket,
            cached_tokens=max(0, num_cached_tokens - num_pulled),
            queued_s=queued_s,
            pull=job.pull,
        )
        self._requests.tell_router(job.router, started)

    def computed(self, job: Job, num_tokens: int) -> None:
        if job.lease is not None:
            # Said when the step's tokens are read, so its KV is written. A mark would be behind
            # the step launched since, and each block announced a step too late.
            self._source.publish(job.lease, num_tokens, awaited=True)

    def close(self) -> None:
        self._ends.close()


def _note(token: SampledToken) -> bytes:
    return codec.first_token.encode(
        FirstToken(token_id=token.token_id, logprob=token.logprob, top=wire_top(token))
    )
