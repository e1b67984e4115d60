"""Tensor-parallel workers around a real engine: each rank has its own pool and source or sink.

The engine computes with all heads in one pool. `RankedPrefill` deals every block out to its ranks'
pools by slicing the tensor, as ranks would have written it, and lends it from each; `RankedDecode`
fetches each rank's part and puts the parts together by slicing again. No plan is used for that.
"""

# Shapes: B blocks, G KV heads; a pool is [B, L, 2, G, S, D].

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from support.eventually import eventually
from support.observed import RecordingObserver

from engine.batch import RowsRead, SampledToken, SequenceId
from engine.commands import Submission
from engine.kvcache.pool import KvPool
from engine.kvcache.windows import NO_BLOCK
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.models.model import Model
from engine.observer import PrefixToPull, SequenceToken
from engine.runner.cpu import TorchRunner
from engine.sequence import FetchLanded, FetchLost, FetchOutcome, Mode
from kvtransfer import endings
from kvtransfer.endings import FetchEnd, LeaseEnd
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.plan import cover
from kvtransfer.sink.sink import Sink
from kvtransfer.source.source import Source
from protocol.ids import LeaseId, WorkerId, new_epoch
from protocol.layout import KvLayout, shard, transfer_compat
from protocol.messages import Sampling, Ticket

NUM_BLOCKS = 48
REQUEST = SequenceId("request")
WITHIN_S = 30.0
LIMITS = EngineLimits(max_running=2, max_waiting=2, token_budget=24, max_context_tokens=256)
"""A small budget: the prompt is computed in several chunks, and fetched while it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one target rank fetches from one source rank."""

    ticket: Ticket
    heads: range


@dataclass(slots=True, eq=False)
class Rank:
    """One rank's pool, over memory of its own."""

    layout: KvLayout
    memory: BlockMemory
    pool: KvPool

    @classmethod
    def of(cls, whole: KvLayout, *, rank: int, size: int) -> "Rank":
        layout = shard(whole, rank=rank, size=size)
        memory = BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=layout.block_bytes)
        return cls(layout, memory, KvPool(layout, NUM_BLOCKS, memory.blocks))

    def close(self) -> None:
        del self.pool
        self.memory.close()


class EngineBench(RecordingObserver):
    """A real engine that runs one request."""

    def __init__(self, model: Model, *, block_tokens: int, mode: Mode) -> None:
        super().__init__()
        (self.layout,) = model.config.kv_layouts(block_tokens=block_tokens, dtype="float32")
        self.pool = KvPool(self.layout, NUM_BLOCKS)
        self.pool.tensor.fill_(float("nan"))
        self.compat = transfer_compat(self.layout, model_revision=model.config.revision)
        self._mode = mode
        self.engine = Engine(
            runner=TorchRunner(model, self.pool), limits=LIMITS, eos_token_ids=(),
            compat=self.compat, generations=[1] * NUM_BLOCKS, observer=self, check=True,
            windows=[group.window for group in model.config.kv_groups],
            dynamic_after=model.config.dynamic_after,
        )  # fmt: skip
        self.engine.start()

    def submit(self, prompt: Sequence[int], *, num_tokens: int) -> None:
        sampling = Sampling(seed=7, max_tokens=num_tokens, temperature=1.0)
        self.engine.submit(
            Submission(id=REQUEST, prompt=list(prompt), sampling=sampling, mode=self._mode)
        )

    def answer(self) -> list[int]:
        """All tokens, once the request has ended."""
        eventually(lambda: REQUEST in self.endings or self.errors, within_s=WITHIN_S)
        assert not self.errors, self.errors
        return self.tokens[REQUEST]

    def blocks(self, sequence: SequenceId) -> list[int]:
        """Those that were lent or fetched, of all KV groups."""
        return [b for b in self.admissions[sequence].block_table if b != NO_BLOCK]

    def close(self) -> None:
        self.engine.stop()


class RankedPrefill(EngineBench):
    """Lends one lease to each target rank that `targets` has, per source rank it needs."""

    def __init__(
        self, model: Model, *, block_tokens: int, size: int, targets: Sequence[KvLayout]
    ) -> None:
        self.ranks = [Rank.of(_whole(model, block_tokens), rank=r, size=size) for r in range(size)]
        self._targets = targets
        self.parts: SimpleQueue[list[list[Part]]] = SimpleQueue()
        """For the one request: the parts of each target rank."""
        self._leases: list[list[LeaseId]] = [[] for _ in self.ranks]
        self._num_open = 0
        self._lock = threading.Lock()
        super().__init__(model, block_tokens=block_tokens, mode=Mode.HANDOVER)
        self.sources = [self._source(number, rank) for number, rank in enumerate(self.ranks)]

    def _source(self, number: int, rank: Rank) -> Source:
        return Source(
            memory=rank.memory, layout=rank.layout, worker=WorkerId(f"prefill-{number}"),
            epoch=new_epoch(), compat=self.compat, on_lease_end=self._lease_ended,
        )  # fmt: skip

    def admitted(
        self, sequence: SequenceId, block_table: tuple[int, ...], generations: tuple[int, ...],
        num_cached_tokens: int, queued_s: float,
    ) -> None:  # fmt: skip
        super().admitted(sequence, block_table, generations, num_cached_tokens, queued_s)
        for rank in self.ranks:
            for block, generation in zip(block_table, generations, strict=True):
                if block != NO_BLOCK:
                    rank.memory.generations[block] = generation
        layouts = [rank.layout for rank in self.ranks]
        covers = [cover(t, layouts, prefer=n) for n, t in enumerate(self._targets)]
        self._num_open = sum(map(len, covers))
        self.parts.put([[self._lend(n, way.heads) for n, way in chosen] for chosen in covers])

    def _lend(self, number: int, heads: range) -> Part:
        ticket = self.sources[number].open_lease(
            block_ids=self.admissions[REQUEST].block_table, num_tokens=len(self.prompt)
        )
        self._leases[number].append(ticket.lease)
        return Part(ticket, heads)

    def submit(self, prompt: Sequence[int], *, num_tokens: int) -> None:
        self.prompt = prompt
        super().submit(prompt, num_tokens=num_tokens)

    def pull(self, sequence: SequenceId, prefix: PrefixToPull) -> None:
        raise AssertionError("nobody was named to pull from")

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        super().computed(sequence, num_tokens)
        table = self.blocks(sequence)
        for rank, source, leases in zip(self.ranks, self.sources, self._leases, strict=True):
            heads = slice(rank.layout.heads.start, rank.layout.heads.stop)
            rank.pool.tensor[table] = self.pool.tensor[table][:, :, :, heads]
            for lease in leases:
                source.publish(lease, num_tokens)

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None:
        pass

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        for token in tokens:
            for source, leases in zip(self.sources, self._leases, strict=True):
                for lease in leases:
                    source.finish(lease, str(token.token.token_id).encode())
        return super().step(tokens)

    def _lease_ended(self, end: LeaseEnd) -> None:
        with self._lock:
            self._num_open -= 1
            last = not self._num_open
        if last:
            self.engine.release(REQUEST)

    def close(self) -> None:
        super().close()
        for source in self.sources:
            source.close()
        for rank in self.ranks:
            rank.close()


class RankedDecode(EngineBench):
    """Fetches every rank's parts by one transport, then decodes."""

    def __init__(self, model: Model, *, block_tokens: int, size: int, transport: str) -> None:
        self.ranks = [Rank.of(_whole(model, block_tokens), rank=r, size=size) for r in range(size)]
        super().__init__(model, block_tokens=block_tokens, mode=Mode.REMOTE)
        self.sinks = [
            Sink(
                memory=rank.memory, layout=rank.layout, worker=WorkerId(f"decode-{number}"),
                compat=self.compat, transports=(transport,), allow_fallback=False,
            )
            for number, rank in enumerate(self.ranks)
        ]  # fmt: skip
        self.ends: list[FetchEnd] = []
        self._lock = threading.Lock()

    def take(self, prompt: Sequence[int], parts: list[list[Part]], *, num_tokens: int) -> None:
        self._parts = parts
        self.submit(prompt, num_tokens=num_tokens)

    def admitted(
        self, sequence: SequenceId, block_table: tuple[int, ...], generations: tuple[int, ...],
        num_cached_tokens: int, queued_s: float,
    ) -> None:  # fmt: skip
        super().admitted(sequence, block_table, generations, num_cached_tokens, queued_s)
        indices = [index for index, block in enumerate(block_table) if block != NO_BLOCK]
        for sink, parts in zip(self.sinks, self._parts, strict=True):
            for part in parts:
                sink.fetch(
                    ticket=part.ticket, indices=indices, block_ids=self.blocks(sequence),
                    heads=part.heads, deadline_s=WITHIN_S, on_end=self._fetched,
                )  # fmt: skip

    def _fetched(self, end: FetchEnd) -> None:
        with self._lock:
            self.ends.append(end)
            last = len(self.ends) == sum(map(len, self._parts))
        if last:
            self.engine.fetch_done(REQUEST, self._outcome())

    def _outcome(self) -> FetchOutcome:
        first = [int(end.note) for end in self.ends if isinstance(end, endings.Landed)]
        if len(first) < len(self.ends):
            return FetchLost(str([end for end in self.ends if not isinstance(end, endings.Landed)]))
        table = self.blocks(REQUEST)
        for rank in self.ranks:
            heads = slice(rank.layout.heads.start, rank.layout.heads.stop)
            self.pool.tensor[table, :, :, heads] = rank.pool.tensor[table]
        return FetchLanded(SampledToken(token_id=first[0]))

    def close(self) -> None:
        super().close()
        for sink in self.sinks:
            sink.close()
        for rank in self.ranks:
            rank.close()


def _whole(model: Model, block_tokens: int) -> KvLayout:
    (layout,) = model.config.kv_layouts(block_tokens=block_tokens, dtype="float32")
    return layout
