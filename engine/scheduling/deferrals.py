"""Who waits because another sequence computes, or fetches, what its prompt begins with.

Whoever computes or fetches is listed by the hash of its first token block that is not findable
yet: to find who brings the block that a newcomer lacks first is one look, however many run. Who
waits is looked at again when as many blocks as it shares are findable, and not before. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from engine.batch import SequenceId
from engine.sequence import Sequence, SequenceState
from protocol.ids import BlockHash

_S = SequenceState
BRINGING: Final = frozenset({_S.FETCHING, _S.PREFILLING, _S.DRAINING, _S.UNWINDING})
"""Blocks of theirs may become findable yet."""
BEFORE_PROMPT: Final = frozenset(
    {_S.COMPILING, _S.WAITING, _S.DEFERRED, _S.FETCHING, _S.PREFILLING, _S.DRAINING}
)
"""The KV of their prompt may come to be here yet, or is and no step has ended since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    waiter: Sequence
    provider: Sequence
    num_rows: int | None
    """Token blocks of the provider's that are to be findable; None: all its prompt is to be here,
    whose KV the waiter goes on from."""
    num_blocks: int
    """That the waiter needs besides what it will share: kept from those that came later."""

    @property
    def is_in_vain(self) -> bool:
        """It was due, and what it waited for will never be here."""
        provider = self.provider
        return self.num_rows is None and provider.num_computed < len(provider.prompt)

    @property
    def is_due(self) -> bool:
        """There is nothing to wait for any more, well or not."""
        provider = self.provider
        if self.num_rows is None:
            return provider.state not in BEFORE_PROMPT
        return (
            provider.state not in BRINGING or provider.block_table.num_sealed >= self.num_rows
        )  # fmt: skip


class Deferrals:
    def __init__(self) -> None:
        self._listed: dict[BlockHash, dict[SequenceId, Sequence]] = {}
        self._next: dict[SequenceId, BlockHash] = {}
        """Of those listed, under which hash."""
        self._waiters: dict[SequenceId, dict[SequenceId, Deferral]] = {}
        """By provider, then by waiter."""
        self._deferrals: dict[SequenceId, Deferral] = {}
        """By waiter."""
        self.num_blocks = 0
        """Kept for all that wait."""
        self._last: tuple[int, int] = (0, 0)
        """None that waits is less urgent."""

    def providers(self, lacking: BlockHash) -> Iterable[Sequence]:
        """Whose first block that is not findable yet is this one, as they were listed."""
        return self._listed.get(lacking, {}).values()

    def list_provider(self, sequence: Sequence) -> None:
        """It computes or fetches, or is further than it was."""
        own = sequence.block_table.next_hash(sequence.tokens, sequence.num_tokens)
        if own == self._next.get(sequence.id):
            return
        self.unlist_provider(sequence)
        if own is not None:
            self._next[sequence.id] = own
            self._listed.setdefault(own, {})[sequence.id] = sequence

    def unlist_provider(self, sequence: Sequence) -> None:
        """Harmless where it is not listed."""
        own = self._next.pop(sequence.id, None)
        if own is not None:
            del self._listed[own][sequence.id]
            if not self._listed[own]:
                del self._listed[own]

    def is_listed(self, sequence: Sequence) -> bool:
        return sequence.id in self._next

    def add(self, deferral: Deferral) -> None:
        waiter, provider = deferral.waiter.id, deferral.provider.id
        self._deferrals[waiter] = deferral
        self.num_blocks += deferral.num_blocks
        last = deferral.waiter.urgency
        self._last = last if len(self._deferrals) == 1 else max(self._last, last)
        self._waiters.setdefault(provider, {})[waiter] = deferral

    def remove(self, waiter: Sequence) -> None:
        """It does not wait any more."""
        deferral = self._deferrals.pop(waiter.id)
        self.num_blocks -= deferral.num_blocks
        others = self._waiters[deferral.provider.id]
        del others[waiter.id]
        if not others:
            del self._waiters[deferral.provider.id]

    def due(self, provider: Sequence) -> list[Deferral]:
        """Of those that wait for it."""
        waiting = self._waiters.get(provider.id)
        return [one for one in waiting.values() if one.is_due] if waiting else []

    def kept_from(self, sequence: Sequence) -> tuple[int, int]:
        """Seats and blocks that this one may not take: of those that are more urgent and wait."""
        urgency = sequence.urgency
        if not self._deferrals or urgency > self._last:
            return len(self._deferrals), self.num_blocks
        before = [d.num_blocks for d in self._deferrals.values() if d.waiter.urgency < urgency]
        return len(before), sum(before)

    def check(self, deferred: Iterable[Sequence]) -> None:
        """Raise AssertionError unless exactly these wait, each for somebody that may still come to
        what it waits for."""
        assert {sequence.id for sequence in deferred} == set(self._deferrals)
        assert all(not deferral.is_due for deferral in self._deferrals.values())
        for own, listed in self._listed.items():
            assert listed and all(self._next[name] == own for name in listed)
            assert all(sequence.state in BRINGING for sequence in listed.values())
