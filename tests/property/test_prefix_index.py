"""The index, over the table in C and over its twin, beside an oracle that knows what workers did.

Two workers are prefix-closed after each of their events, three are not. Events come in any order,
twice or never, workers restart, leave and come back, snapshots are read at any time and stored in
slices with anything between them. Whenever a worker is said to be exact its depth is what it was by
its last event that came with all before it; whatever was said, one snapshot of now makes it exact;
and both tables always answer the same.
"""

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.blocks import HASH_BYTES, ChangeKind, packed_hashes, unpack_hashes
from protocol.ids import BlockHash, Epoch, WorkerId
from router.prefix.c_table import CTable
from router.prefix.dict_table import DictTable
from router.prefix.holding import EARLY_WAIT_S
from router.prefix.native.library import kernels
from router.prefix.prefix_index import SPECULATIVE_TTL_S, PrefixIndex, SnapshotLoad
from router.prefix.state import IndexState

WORKERS = [WorkerId(f"w{n}") for n in range(5)]
SEED = BlockHash(bytes(16))
PROMPTS = [
    packed_hashes(tokens, block_tokens=1, seed=SEED)
    for tokens in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8], [1, 2, 9], list(range(10, 50)), [1])
]
CLOSED = frozenset(WORKERS[:2])
CHAINS = {
    block: hashes[: place + 1]
    for hashes in map(unpack_hashes, PROMPTS)
    for place, block in enumerate(hashes)
}
"""Each block, and all up to it."""
BLOCKS = sorted(CHAINS)

workers = st.sampled_from(WORKERS)
prompts = st.sampled_from(PROMPTS)
some_blocks = st.lists(st.sampled_from(BLOCKS), max_size=8)


@dataclass(frozen=True)
class Event:
    sequence: int
    kind: ChangeKind
    hashes: tuple[BlockHash, ...]


@dataclass
class Life:
    """One incarnation: all it did, what of it has not come yet, and what the oracle believes."""

    epoch: Epoch
    events: list[Event] = field(default_factory=list)
    on_the_way: list[Event] = field(default_factory=list)
    came: set[int] = field(default_factory=set)
    known: int = -1
    """Number of the last event known with all before it; -1: never exact."""

    def set_at(self, sequence: int) -> frozenset[BlockHash]:
        held: set[BlockHash] = set()
        for event in self.events[:sequence]:
            match event.kind:
                case "stored":
                    held.update(event.hashes)
                case "evicted":
                    held.difference_update(event.hashes)
                case "cleared":
                    held.clear()
        return frozenset(held)

    def advance(self) -> None:
        while self.known >= 0 and self.known + 1 in self.came:
            self.known += 1


class IndexMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed: int) -> None:
        library = kernels()
        if library is None:
            pytest.skip("no C compiler")
        table = CTable(library, max_blocks=4096, segment_blocks=8)
        self.indexes = (
            PrefixIndex(max_blocks=4096, table=table),
            PrefixIndex(max_blocks=4096, table=DictTable(max_blocks=4096)),
        )
        self.random = random.Random(seed)
        self.lives: dict[WorkerId, Life] = {}
        self.sent: list[tuple[WorkerId, Epoch, bytes, float]] = []
        self.loads: list[tuple[WorkerId, Life, int, list[SnapshotLoad]]] = []
        self.now = 100.0
        self.num_epochs = 0

    @rule(worker=workers)
    def restart(self, worker: WorkerId) -> None:
        """Or begin."""
        self.num_epochs += 1
        self.lives[worker] = Life(Epoch(self.num_epochs))
        for index in self.indexes:
            index.follow_worker(worker, self.lives[worker].epoch, is_prefix_closed=worker in CLOSED)

    @rule(gone=st.sets(workers, max_size=3))
    def leave(self, gone: set[WorkerId]) -> None:
        self.lives = {worker: life for worker, life in self.lives.items() if worker not in gone}
        for index in self.indexes:
            epochs = {worker: life.epoch for worker, life in self.lives.items()}
            index.follow_only_workers(epochs, closed=CLOSED)

    @precondition(lambda self: self.lives)
    @rule(blocks=some_blocks, prompt=prompts, kind=st.sampled_from(["stored", "evicted", "prompt"]))
    def change(self, blocks: list[BlockHash], prompt: bytes, kind: str) -> None:
        if kind == "prompt":
            self._happen("stored", (*blocks, *unpack_hashes(prompt)))
        elif blocks:
            self._happen("stored" if kind == "stored" else "evicted", tuple(blocks))

    @precondition(lambda self: self.lives)
    @rule()
    def clear(self) -> None:
        self._happen("cleared", ())

    @precondition(lambda self: self.lives)
    @rule(num_blocks=st.integers(10, 60))
    def fill(self, num_blocks: int) -> None:
        """So that the table grows."""
        new = (BlockHash(self.random.randbytes(HASH_BYTES)) for _ in range(num_blocks))
        self._happen("stored", tuple(new))

    @precondition(lambda self: self.lives)
    @rule(how=st.sampled_from(["in order", "in order", "any", "twice", "never"]))
    def arrive(self, how: str) -> None:
        """Some of what is on the way."""
        worker = self._worker()
        life = self.lives[worker]
        for _ in range(min(len(life.on_the_way), self.random.randint(1, 4))):
            place = 0 if how == "in order" else self.random.randrange(len(life.on_the_way))
            event = life.on_the_way[place]
            if how != "twice":
                del life.on_the_way[place]
            if how != "never":
                self._deliver(worker, life, event)

    @precondition(lambda self: self.lives)
    @rule(age=st.integers(0, 3))
    def read_snapshot(self, age: int) -> None:
        worker = self._worker()
        life = self.lives[worker]
        sequence = max(0, len(life.events) - age)
        packed = b"".join(life.set_at(sequence))
        loads = [
            index.begin_snapshot(worker, life.epoch, sequence=sequence, packed=packed)
            for index in self.indexes
        ]
        begun = [load for load in loads if load is not None]
        assert len(begun) in (0, 2)
        for load in begun:
            for _ in load.store_slices():
                pass
        if begun:
            self.loads.append((worker, life, sequence, begun))

    @precondition(lambda self: self.loads)
    @rule()
    def end_snapshot(self) -> None:
        _, life, sequence, begun = self.loads.pop(0)
        one, other = (load.finish() for load in begun)
        assert one == other
        if one:
            life.known = sequence
            life.advance()

    @rule()
    def doubt(self) -> None:
        for index in self.indexes:
            index.doubt_all()
        for life in self.lives.values():
            life.known = -1

    @rule(passed_s=st.sampled_from([EARLY_WAIT_S, SPECULATIVE_TTL_S / 3, SPECULATIVE_TTL_S]))
    def wait(self, passed_s: float) -> None:
        self.now += passed_s
        for index in self.indexes:
            index.give_up_waiting(now=self.now)

    @precondition(lambda self: self.lives)
    @rule(prompt=prompts)
    def send(self, prompt: bytes) -> None:
        worker = self._worker()
        for index in self.indexes:
            index.expect_blocks(worker, prompt, now=self.now)
        expires = self.now + SPECULATIVE_TTL_S
        self.sent.append((worker, self.lives[worker].epoch, prompt, expires))

    @rule(num_slices=st.integers(1, 30))
    def sweep(self, num_slices: int) -> None:
        for index in self.indexes:
            for _ in range(num_slices):
                index.sweep_some()

    @invariant()
    def both_tables_answer_the_same_and_exact_ones_what_is_true(self) -> None:
        if not hasattr(self, "indexes"):
            return
        one, other = self.indexes
        assert one.states == other.states
        for prompt in PROMPTS:
            depths, held = (each.tolist() for each in one.depths_and_held(prompt, now=self.now))
            assert depths == other.depths(prompt, now=self.now).tolist()
            for worker, life in self.lives.items():
                slot = one.slot_of(worker)
                assert slot is not None
                if one.state_of(worker) is IndexState.EXACT:
                    assert depths[slot] == self._true_depth(worker, life, prompt)
                    assert held[slot] == self._true_depth(worker, life, prompt, hopes=False)

    def teardown(self) -> None:
        """Whatever happened: one snapshot of now each, and all is exact and swept."""
        if not hasattr(self, "indexes"):
            return
        for _, _, _, begun in self.loads:
            for load in begun:
                load.finish()
        for index in self.indexes:
            for worker, life in self.lives.items():
                packed = b"".join(life.set_at(len(life.events)))
                assert index.load_snapshot(
                    worker, life.epoch, sequence=len(life.events), packed=packed
                )
            assert index.state is IndexState.EXACT
            while index.is_dirty:
                index.sweep_some()
            held = [life.set_at(len(life.events)) for life in self.lives.values()]
            assert len(index) == len(frozenset().union(*held))
        for life in self.lives.values():
            life.known = len(life.events)
        self.both_tables_answer_the_same_and_exact_ones_what_is_true()

    def _worker(self) -> WorkerId:
        return self.random.choice(sorted(self.lives))

    def _happen(self, kind: ChangeKind, hashes: tuple[BlockHash, ...]) -> None:
        worker = self._worker()
        life = self.lives[worker]
        hashes = _closed(kind, hashes) if worker in CLOSED else hashes
        event = Event(len(life.events) + 1, kind, hashes)
        life.events.append(event)
        life.on_the_way.append(event)

    def _deliver(self, worker: WorkerId, life: Life, event: Event) -> None:
        for index in self.indexes:
            index.apply_event(
                worker,
                life.epoch,
                sequence=event.sequence,
                kind=event.kind,
                packed=b"".join(event.hashes),
                now=self.now,
            )
        life.came.add(event.sequence)
        life.advance()

    def _true_depth(
        self, worker: WorkerId, life: Life, prompt: bytes, *, hopes: bool = True
    ) -> int:
        held, chain = life.set_at(life.known), unpack_hashes(prompt)
        hoped: set[BlockHash] = set()
        for sent_to, epoch, sent, expires in self.sent if hopes else ():
            if (sent_to, epoch) == (worker, life.epoch) and expires > self.now:
                hoped.update(unpack_hashes(sent))
        depth = 0
        while depth < len(chain) and (chain[depth] in held or chain[depth] in hoped):
            depth += 1
        return depth


def _closed(kind: ChangeKind, hashes: tuple[BlockHash, ...]) -> tuple[BlockHash, ...]:
    """With what comes before a block stored, and what comes after a block evicted."""
    if kind == "evicted":
        gone = set(hashes)
        return tuple(block for block in BLOCKS if gone & set(CHAINS[block]))
    return tuple(dict.fromkeys(each for block in hashes for each in CHAINS.get(block, (block,))))


IndexMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, derandomize=True
)
TestPrefixIndex = IndexMachine.TestCase
