"""An engine observer that writes everything down, for tests of the engine and its workers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.batch import RowsRead, SequenceId
from engine.observer import PrefixToPull, SequenceToken
from engine.sequence import SequenceUsage, Verdict
from protocol.blocks import BlockChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    block_table: tuple[int, ...]
    generations: tuple[int, ...]
    num_cached_tokens: int
    queued_s: float


@dataclass(slots=True)
class RecordingObserver:
    """`stop_at` ends the text of a sequence at that many tokens, as a stop string would."""

    stop_at: dict[SequenceId, int] = field(default_factory=dict)
    admissions: dict[SequenceId, Admission] = field(default_factory=dict)
    pulls: dict[SequenceId, PrefixToPull] = field(default_factory=dict)
    """Asked for and never begun: a test ends them."""
    written: dict[SequenceId, list[int]] = field(default_factory=dict)
    tokens: dict[SequenceId, list[int]] = field(default_factory=dict)
    reads: dict[SequenceId, list[tuple[int, RowsRead]]] = field(default_factory=dict)
    endings: dict[SequenceId, Verdict] = field(default_factory=dict)
    usages: dict[SequenceId, SequenceUsage] = field(default_factory=dict)
    block_changes: list[BlockChange] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def admitted(
        self,
        sequence: SequenceId,
        block_table: tuple[int, ...],
        generations: tuple[int, ...],
        num_cached_tokens: int,
        queued_s: float,
    ) -> None:
        assert sequence not in self.admissions, f"{sequence} is admitted twice"
        self.admissions[sequence] = Admission(
            block_table=block_table,
            generations=generations,
            num_cached_tokens=num_cached_tokens,
            queued_s=queued_s,
        )

    def pull(self, sequence: SequenceId, prefix: PrefixToPull) -> None:
        assert sequence not in self.admissions, f"{sequence} pulls after its admission"
        self.pulls[sequence] = prefix

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        self.written.setdefault(sequence, []).append(num_tokens)

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None:
        self.reads.setdefault(sequence, []).append((first, read))

    def step(self, tokens: Sequence[SequenceToken]) -> Collection[SequenceId]:
        for token in tokens:
            assert token.id not in self.endings, f"{token.id} speaks after its ending"
            self.tokens.setdefault(token.id, []).append(token.token.token_id)
        return {t.id for t in tokens if self.stop_at.get(t.id) == t.index + 1}

    def ended(self, sequence: SequenceId, verdict: Verdict, usage: SequenceUsage) -> None:
        assert sequence not in self.endings, f"{sequence} ends twice"
        self.endings[sequence] = verdict
        self.usages[sequence] = usage

    def settled(self) -> None:
        """Nothing waits here."""

    def blocks_changed(self, changes: Sequence[BlockChange]) -> None:
        self.block_changes.extend(changes)

    def broken(self, error: BaseException) -> None:
        self.errors.append(error)
