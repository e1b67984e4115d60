"""A real engine on either side of a real hand-over: pools in memory that sources and sinks serve.

What prefill and decode workers' transfers do, without messages and text. Unwritten slots hold NaN:
a model that reads one answers no number.
"""

from collections.abc import Collection, MutableSequence, Sequence
from queue import SimpleQueue
from typing import cast

from support.eventually import eventually
from support.observed import RecordingObserver

from engine.batch import RowsRead, SampledToken, SequenceId
from engine.commands import Submission
from engine.kvcache.pool import KvPool
from engine.kvcache.windows import NO_BLOCK
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.models.model import Model
from engine.observer import SequenceToken
from engine.runner.cpu import TorchRunner
from engine.sequence import FetchLanded, FetchLost, FetchOutcome, Mode
from kvtransfer import endings
from kvtransfer.endings import FetchEnd, LeaseEnd
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.sink import Sink
from kvtransfer.source.source import Source
from protocol.ids import LeaseId, WorkerId, new_epoch
from protocol.layout import transfer_compat
from protocol.messages import Sampling, Ticket

WITHIN_S = 30.0


class Side(RecordingObserver):
    """One engine."""

    def __init__(self, model: Model, *, num_blocks: int = 96, block_tokens: int = 16) -> None:
        super().__init__()
        self.temperature = 1.0
        (self.layout,) = model.config.kv_layouts(block_tokens=block_tokens, dtype="float32")
        self.memory = BlockMemory.create(num_blocks=num_blocks, block_bytes=self.layout.block_bytes)
        pool = KvPool(self.layout, num_blocks, self.memory.blocks)
        pool.tensor.fill_(float("nan"))
        self.windows = [group.window for group in model.config.kv_groups]
        self.compat = transfer_compat(self.layout, model_revision=model.config.revision)
        self.engine = Engine(
            runner=TorchRunner(model, pool),
            limits=EngineLimits(
                max_running=4, max_waiting=8, token_budget=24, max_context_tokens=512
            ),
            eos_token_ids=(), compat=self.compat,
            generations=cast(MutableSequence[int], self.memory.generations),
            observer=self, check=True,
            windows=self.windows, dynamic_after=model.config.dynamic_after,
        )  # fmt: skip
        self.engine.start()

    def submit(
        self, name: str, prompt: Sequence[int], *, num_tokens: int, mode: Mode = Mode.LOCAL,
        generated: Sequence[int] = (),
    ) -> SequenceId:  # fmt: skip
        sequence = SequenceId(name)
        sampling = Sampling(seed=7, max_tokens=num_tokens, temperature=self.temperature)
        self.engine.submit(
            Submission(
                id=sequence,
                prompt=list(prompt),
                generated=tuple(generated),
                sampling=sampling,
                mode=mode,
            )
        )
        return sequence

    def answer(self, sequence: SequenceId) -> list[int]:
        """All its tokens, once it has ended."""
        eventually(lambda: sequence in self.endings or self.errors, within_s=WITHIN_S)
        assert not self.errors, self.errors
        return self.tokens.get(sequence, [])

    @property
    def all_back(self) -> bool:
        blocks = self.engine.stats().blocks
        return blocks.free + blocks.cached == blocks.total

    def close(self) -> None:
        self.engine.stop()
        self.memory.close()


class PrefillSide(Side):
    """All its requests are HANDOVERs."""

    def __init__(self, model: Model, *, num_blocks: int = 96, block_tokens: int = 16) -> None:
        self.tickets: SimpleQueue[Ticket] = SimpleQueue()
        self._leases: dict[SequenceId, LeaseId] = {}
        self._lent: dict[LeaseId, SequenceId] = {}
        self._lengths: dict[SequenceId, int] = {}
        super().__init__(model, num_blocks=num_blocks, block_tokens=block_tokens)
        self.source = Source(
            memory=self.memory, layout=self.layout, worker=WorkerId("prefill-0"),
            epoch=new_epoch(), compat=self.compat, on_lease_end=self._lease_ended,
        )  # fmt: skip

    def submit(
        self, name: str, prompt: Sequence[int], *, num_tokens: int, mode: Mode = Mode.HANDOVER,
        generated: Sequence[int] = (),
    ) -> SequenceId:  # fmt: skip
        self._lengths[SequenceId(name)] = len(prompt) + len(generated)
        return super().submit(name, prompt, num_tokens=num_tokens, mode=mode, generated=generated)

    def admitted(
        self, sequence: SequenceId, block_table: tuple[int, ...], generations: tuple[int, ...],
        num_cached_tokens: int, queued_s: float,
    ) -> None:  # fmt: skip
        super().admitted(sequence, block_table, generations, num_cached_tokens, queued_s)
        ticket = self.source.open_lease(block_ids=block_table, num_tokens=self._lengths[sequence])
        self._leases[sequence], self._lent[ticket.lease] = ticket.lease, sequence
        self.source.publish(ticket.lease, num_cached_tokens)
        self.tickets.put(ticket)

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        super().computed(sequence, num_tokens)
        self.source.publish(self._leases[sequence], num_tokens)

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None:
        pass

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        for token in tokens:
            self.source.finish(self._leases[token.id], str(token.token.token_id).encode())
        return super().step(tokens)

    def _lease_ended(self, end: LeaseEnd) -> None:
        self.engine.release(self._lent[end.lease])

    def close(self) -> None:
        self.engine.stop()
        self.source.close()
        super().close()


class DecodeSide(Side):
    """What has a ticket is REMOTE, the rest LOCAL."""

    def __init__(
        self, model: Model, *, num_blocks: int = 96, block_tokens: int = 16,
        transport: str = "shm",
    ) -> None:  # fmt: skip
        self.ends: dict[SequenceId, FetchEnd] = {}
        self._tickets: dict[SequenceId, Ticket] = {}
        super().__init__(model, num_blocks=num_blocks, block_tokens=block_tokens)
        self.sink = Sink(
            memory=self.memory, layout=self.layout, worker=WorkerId("decode-0"),
            compat=self.compat, transports=(transport,), allow_fallback=False,
        )  # fmt: skip

    def take(
        self, name: str, prompt: Sequence[int], ticket: Ticket, *, num_tokens: int
    ) -> SequenceId:
        self._tickets[SequenceId(name)] = ticket
        return self.submit(name, prompt, num_tokens=num_tokens, mode=Mode.REMOTE)

    def admitted(
        self, sequence: SequenceId, block_table: tuple[int, ...], generations: tuple[int, ...],
        num_cached_tokens: int, queued_s: float,
    ) -> None:  # fmt: skip
        super().admitted(sequence, block_table, generations, num_cached_tokens, queued_s)
        if sequence not in self._tickets:
            return
        first = self.layout.num_blocks(num_cached_tokens)
        indices = [i for i in range(first, len(block_table)) if block_table[i] != NO_BLOCK]
        self.sink.fetch(
            ticket=self._tickets[sequence], indices=indices,
            block_ids=[block_table[index] for index in indices], deadline_s=WITHIN_S,
            on_end=lambda end: self._fetched(sequence, end),
        )  # fmt: skip

    def _fetched(self, sequence: SequenceId, end: FetchEnd) -> None:
        self.ends[sequence] = end
        outcome: FetchOutcome = FetchLost(str(end))
        if isinstance(end, endings.Landed):
            outcome = FetchLanded(SampledToken(token_id=int(end.note)))
        self.engine.fetch_done(sequence, outcome)

    def close(self) -> None:
        self.engine.stop()
        self.sink.close()
        super().close()
