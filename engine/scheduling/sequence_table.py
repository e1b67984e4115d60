"""Every sequence that owns something, by id and by state; where endings happen and blocks go back.

A sequence's blocks are given back in `_give_back` and nowhere else but `preempt`; a quarantined one
returns in `release_quarantined`. Pure.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import takewhile

from engine.batch import RowsRead, SequenceId
from engine.kvcache.prefix_cache import PrefixCache
from engine.scheduling.deferrals import BRINGING, Deferral, Deferrals
from engine.sequence import Fail, Sequence, SequenceEvent, SequenceState, Verdict
from protocol.messages import Blocks, Load


@dataclass(frozen=True, slots=True)
class SequenceAdmitted:
    """Its blocks are allocated, for the first time."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class SequencePulls:
    """Its blocks are allocated, and into those of its tokens before `num_tokens` that are not
    cached a fetch may write. It is admitted once that is over."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceComputed:
    """HANDOVER: the KV of the first `num_tokens` tokens is written."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceRead:
    """Rows of its prompt, of which the first is that of token `first`."""

    sequence: Sequence
    first: int
    read: RowsRead


@dataclass(frozen=True, slots=True)
class SequenceEnded:
    """Its verdict is final."""

    sequence: Sequence
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SequenceFreed:
    """It owns nothing any more; its id may be used again."""

    sequence: Sequence


QUEUED_STATES = (SequenceState.COMPILING, SequenceState.WAITING, SequenceState.DEFERRED)
COMPUTED_STATES = (SequenceState.PREFILLING, SequenceState.DECODING)
ENDED_STATES = (SequenceState.DRAINING, SequenceState.LEASED, SequenceState.UNWINDING)
Effect = (
    SequenceAdmitted | SequencePulls | SequenceComputed | SequenceRead | SequenceEnded
    | SequenceFreed
)  # fmt: skip


class SequenceTable:
    """Sequences by state, of each state in the order they came to it."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._sequences: dict[SequenceId, Sequence] = {}
        self._by_state: dict[SequenceState, OrderedDict[SequenceId, Sequence]] = {
            state: OrderedDict() for state in SequenceState if state is not SequenceState.FREED
        }
        self.compiling = self._by_state[SequenceState.COMPILING]
        self.waiting = self._by_state[SequenceState.WAITING]
        self.deferred = self._by_state[SequenceState.DEFERRED]
        self.fetching = self._by_state[SequenceState.FETCHING]
        self.prefilling = self._by_state[SequenceState.PREFILLING]
        self.decoding = self._by_state[SequenceState.DECODING]
        self.deferrals = Deferrals()
        self._effects: list[Effect] = []
        self._quarantined: set[int] = set()
        """Blocks of ended fetches that somebody may still write into."""

    @property
    def num_running(self) -> int:
        """Sequences that own blocks and have no ending yet."""
        return len(self.fetching) + len(self.prefilling) + len(self.decoding)

    def get(self, sequence_id: SequenceId) -> Sequence | None:
        return self._sequences.get(sequence_id)

    def all(self) -> list[Sequence]:
        return list(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        assert sequence.id not in self._sequences, f"sequence {sequence.id} exists already"
        self._sequences[sequence.id] = sequence
        self._put(sequence)

    def defer(self, deferral: Deferral) -> None:
        """It waits for what another brings."""
        waiter, num_rows = deferral.waiter, deferral.num_rows
        self.move(waiter, SequenceEvent.DEFERRED)
        waiter.num_awaited = waiter.num_tokens - 1
        if num_rows is not None:
            waiter.num_awaited = num_rows * self._cache.block_tokens
        self.deferrals.add(deferral)

    def note_sealed(self, sequence: Sequence) -> None:
        """More of its blocks are findable."""
        if self.deferrals.is_listed(sequence):
            self.deferrals.list_provider(sequence)
            self._resume_due(sequence)

    def _resume_due(self, provider: Sequence) -> None:
        for deferral in self.deferrals.due(provider):
            if deferral.is_in_vain:
                why = f"{provider.id}, which it forks, has ended before its prompt was here"
                self.finish(deferral.waiter, Fail("source_lost", why))
            else:
                self.move(deferral.waiter, SequenceEvent.RESUMED)

    def admit(self, sequence: Sequence, *, now: float, pull_end: int = 0) -> None:
        """Its blocks are allocated. The KV of its tokens before `pull_end` that is not cached here
        is fetched first."""
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            sequence.admitted_at = now
        sequence.pull_tokens = pull_end
        if pull_end:
            sequence.fetch_open = True
            self.move(sequence, SequenceEvent.RESERVED)
            self._effects.append(SequencePulls(sequence, pull_end))
            return
        if sequence.needs_fetch:
            sequence.fetch_open = True
            self.move(sequence, SequenceEvent.RESERVED)
        else:
            sequence.lease_held = sequence.leases
            self.move(sequence, SequenceEvent.ADMITTED)
        self._tell_admitted(sequence)

    def end_pull(self, sequence: Sequence, *, starts_over: bool) -> None:
        """Nobody writes into its blocks any more, or it `starts_over` on others: back in the queue,
        from which what came is found in the prefix cache."""
        sequence.fetch_open = False
        sequence.pull_tokens = 0
        if starts_over:
            self.preempt(sequence)
            return
        sequence.lease_held = sequence.leases
        self.move(sequence, SequenceEvent.PULLED)
        self._tell_admitted(sequence)

    def _tell_admitted(self, sequence: Sequence) -> None:
        """Once, however often it is preempted."""
        if not sequence.is_told:
            sequence.is_told = True
            self._effects.append(SequenceAdmitted(sequence))

    def note_computed(self, sequence: Sequence) -> None:
        self._effects.append(SequenceComputed(sequence, sequence.num_computed))

    def note_read(self, sequence: Sequence, rows: range, read: RowsRead) -> None:
        sequence.num_read = rows.stop
        self._effects.append(SequenceRead(sequence, rows.start, read))

    def preempt(self, sequence: Sequence) -> None:
        """Back to its place in the queue, owning nothing."""
        sequence.block_table.give_back()
        sequence.num_computed = sequence.num_launched = 0
        self.move(sequence, SequenceEvent.PREEMPTED)

    def finish(self, sequence: Sequence, verdict: Verdict) -> None:
        """Give it its one ending, and its blocks back unless somebody refers to them: a launched
        forward, a lease or a fetch."""
        if sequence.in_flight:
            self.move(sequence, SequenceEvent.ENDED_IN_FLIGHT)
        elif sequence.lease_held:
            self.move(sequence, SequenceEvent.ENDED_UNDER_LEASE)
        elif sequence.fetch_open:
            self.move(sequence, SequenceEvent.ENDED_UNDER_FETCH)
        else:
            self.move(sequence, SequenceEvent.ENDED)
        sequence.verdict = verdict
        self._effects.append(SequenceEnded(sequence, verdict))
        self._give_back(sequence)

    def drained(self, sequence: Sequence) -> None:
        """No launched forward refers any more to the blocks of this one, which has its ending."""
        under_lease, free = SequenceEvent.DRAINED_UNDER_LEASE, SequenceEvent.DRAINED
        self.move(sequence, under_lease if sequence.lease_held else free)
        self._give_back(sequence)

    def lease_ended(self, sequence: Sequence) -> None:
        sequence.lease_held = False
        if sequence.state is SequenceState.LEASED:
            self.move(sequence, SequenceEvent.LEASE_ENDED)
            self._give_back(sequence)

    def fetch_ended(self, sequence: Sequence) -> None:
        sequence.fetch_open = False
        if sequence.state is SequenceState.UNWINDING:
            self.move(sequence, SequenceEvent.FETCH_ENDED)
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        """What nobody refers to, of one that has its ending."""
        if sequence.state is not SequenceState.FREED:
            sequence.block_table.promise_no_more()
            return
        sequence.block_table.give_back()
        del self._sequences[sequence.id]
        self._effects.append(SequenceFreed(sequence))

    def quarantine(self, blocks: Collection[int]) -> None:
        """Hold these until `release_quarantined`, whatever becomes of the sequence that owns
        them."""
        for block in blocks:
            assert block not in self._quarantined, f"block {block} is quarantined twice"
            self._cache.hold(block)
            self._quarantined.add(block)

    def release_quarantined(self, blocks: Collection[int]) -> None:
        """Nobody writes into these any more. Harmless for others."""
        for block in self._quarantined.intersection(blocks):
            self._quarantined.remove(block)
            self._cache.let_go(block)

    def move(self, sequence: Sequence, event: SequenceEvent) -> None:
        before = sequence.state
        sequence.move(event)
        del self._by_state[before][sequence.id]
        if before is SequenceState.DEFERRED:
            sequence.num_awaited = 0
            self.deferrals.remove(sequence)
        if sequence.state is not SequenceState.FREED:
            self._put(sequence)
        self._note_brought(sequence)

    def _note_brought(self, sequence: Sequence) -> None:
        """What others wait for: whether it comes to it still."""
        if sequence.state in (SequenceState.FETCHING, SequenceState.PREFILLING):
            self.deferrals.list_provider(sequence)
        elif sequence.state not in BRINGING:
            self.deferrals.unlist_provider(sequence)
        self._resume_due(sequence)

    def _put(self, sequence: Sequence) -> None:
        """Last of its state, but in the queue before those that are less urgent."""
        self._by_state[sequence.state][sequence.id] = sequence
        if sequence.state is SequenceState.WAITING:
            others = (s for s in reversed(self.waiting.values()) if s is not sequence)
            behind = list(takewhile(lambda s: s.urgency > sequence.urgency, others))
            for other in reversed(behind):
                self.waiting.move_to_end(other.id)

    def take_effects(self) -> list[Effect]:
        """What happened since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # -- facts ------------------------------------------------------------------------------

    def load(self) -> Load:
        queued = [s for state in QUEUED_STATES for s in self._by_state[state].values()]
        to_compute = [s for s in queued if not s.needs_fetch]
        to_compute += self.prefilling.values()
        to_compute += (s for s in self.fetching.values() if s.is_pulling)
        return Load(
            running=self.num_running,
            waiting=len(queued),
            waiting_tokens=sum(s.num_to_compute for s in to_compute),
            context_tokens=sum(s.num_computed for s in self.decoding.values()),
        )

    def block_counts(self, lent: Collection[int] = ()) -> Blocks:
        """Leased are the blocks held by nobody but sequences that wait for their lease to end, and
        peers that are `lent` cached ones."""
        holds = self._holds(SequenceState.LEASED)
        holds.update(lent)
        refs = self._cache.blocks.refs
        return self._cache.blocks.counts(
            leased=sum(1 for block, count in holds.items() if refs(block) == count)
        )

    def check(self, held: Collection[int] = ()) -> None:
        """Raise AssertionError unless every block is held by exactly those who say so, among them
        who holds these for no sequence."""
        self._cache.check()
        sequences = self._sequences.values()
        assert all(sequence.block_table.keeps_promise for sequence in sequences)
        for state, members in self._by_state.items():
            for sequence in members.values():
                assert sequence.state is state and self._sequences[sequence.id] is sequence
                assert sequence.num_computed <= sequence.num_tokens
                assert not sequence.block_table.blocks or state not in QUEUED_STATES
                ended = state in ENDED_STATES
                assert (sequence.verdict is not None) == ended
                _check_launched(sequence)
        assert sum(len(members) for members in self._by_state.values()) == len(self._sequences)
        self.deferrals.check(self.deferred.values())
        urgencies = [sequence.urgency for sequence in self.waiting.values()]
        assert urgencies == sorted(urgencies), "somebody overtook in the queue"
        holds = self._holds(*self._by_state)
        holds.update(self._quarantined)
        holds.update(held)
        for block in range(self._cache.blocks.num_blocks):
            refs = self._cache.blocks.refs(block)
            assert refs == holds[block], f"block {block}: {refs} refs, {holds[block]} holders"

    def _holds(self, *states: SequenceState) -> Counter[int]:
        holds: Counter[int] = Counter()
        for state in states:
            for sequence in self._by_state[state].values():
                holds.update(sequence.block_table.holds)
        return holds


def _check_launched(sequence: Sequence) -> None:
    match sequence.state:
        case SequenceState.PREFILLING | SequenceState.DECODING:
            assert sequence.num_computed <= sequence.num_launched
            assert sequence.pending <= sequence.in_flight
            assert sequence.in_flight or sequence.num_launched == sequence.num_computed
        case SequenceState.DRAINING:
            assert sequence.in_flight
        case _:
            assert not sequence.in_flight
