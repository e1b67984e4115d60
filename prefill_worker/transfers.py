"""The prefill leg: compute a prompt, sample one token, lend the blocks to whoever decodes.

What is told of a request leaves in order: Started, the token, then one ending.
"""

from typing import assert_never

from engine.batch import SampledToken
from engine.loop import Engine
from engine.sequence import Mode
from kvtransfer.source.source import Source
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
from worker.transport_uses import TransportUses


def open_transfers(parts: WorkerParts[PrefillSettings]) -> "PrefillTransfers":
    """A source, and the leases on its blocks."""
    settings, model = parts.settings, parts.model
    lent = LentLeases(parts.engine, parts.metrics.transfer)
    source = Source(
        memory=model.memory,
        layout=model.assembly.layout,
        worker=parts.worker,
        epoch=parts.epoch,
        compat=model.assembly.transfer_compat,
        on_lease_end=lent.ended,
        host=settings.host,
        advertised_host=settings.advertise,
        lease_ttl_s=settings.lease_ttl_s,
        transports=model.transports,
        help_copy=settings.kv_help_copy,
        on_broken=parts.give_up,
    )
    return PrefillTransfers(source=source, lent=lent, engine=parts.engine, requests=parts.requests)


class PrefillTransfers:
    """Implements `worker.requests.Transfers`: what it moves is lent."""

    def __init__(
        self, *, source: Source, lent: LentLeases, engine: Engine, requests: RequestTable
    ) -> None:
        self._source = source
        self._lent = lent
        self._engine = engine
        self._requests = requests
        self.speed = TransferSpeed()

    @property
    def uses(self) -> TransportUses:
        return self._lent.uses

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
        """Nothing is fetched here."""

    def settle_job(self, job: Job, ending: RequestEnding) -> None:
        if job.lease is not None and isinstance(ending, PrefillDone):
            self._source.finish(job.lease, _note(job.emits[-1][1]), awaited=True)

    def ending_told(self, job: Job, ending: RequestEnding) -> None:
        """The decode worker must not hear of a failure before the router does, or it would call the
        source lost. A request that its first token ended is left for the router to abort: the
        decode worker then gives the lease back."""
        if job.lease is not None and isinstance(ending, Failed | Aborted):
            self._source.fail(job.lease, ending_name(ending))

    def abort_request(self, key: Key) -> None:
        lease = self._lent.of_key(key)
        if lease is not None:
            self._source.fail(lease, "the request was aborted")

    def drop_request(self, message: Computation) -> None:
        """Nothing is lent before admission."""

    def moving(self) -> list[Key]:
        return self._lent.keys()

    def is_idle(self) -> bool:
        return not self._lent.keys()

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
        self._requests.tell_router(
            job.router,
            Started(
                request=job.request,
                attempt=job.attempt,
                ticket=ticket,
                cached_tokens=num_cached_tokens,
                queued_s=queued_s,
            ),
        )

    def computed(self, job: Job, num_tokens: int) -> None:
        if job.lease is not None:
            # Said when the step's tokens are read, so its KV is written. A mark would be behind
            # the step launched since, and each block announced a step too late.
            self._source.publish(job.lease, num_tokens, awaited=True)

    def close(self) -> None:
        self._source.close()


def _note(token: SampledToken) -> bytes:
    return codec.first_token.encode(
        FirstToken(token_id=token.token_id, logprob=token.logprob, top=wire_top(token))
    )
