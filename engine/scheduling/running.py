"""Who of the running sequences is computed next, on which blocks, and who makes room for it.

Pure.
"""

from engine.kvcache.windows import KvGroups
from engine.scheduling.in_flight import STEPS_AHEAD, InFlightSteps
from engine.scheduling.sequence_table import SequenceTable
from engine.sequence import Sequence, SequenceState


class Running:
    def __init__(self, *, groups: KvGroups, table: SequenceTable, steps: InFlightSteps) -> None:
        self._groups = groups
        self._table = table
        self._steps = steps
        self.num_preempted = 0
        self._leaving: Sequence | None = None
        """To be preempted once no launched forward refers to it: it gets no chunk meanwhile."""

    def next_decodes(self) -> list[Sequence]:
        """Who gets its next token in this step, a block for it included. Those whose last token is
        known come first: for them the least urgent makes room. The others may be launched ahead
        of it, into room that nobody needs more."""
        num_preempted = self.num_preempted
        self._leaving = None
        running = list(self._table.decoding.values())
        chosen = [s for s in running if not s.in_flight and (_has_room(s) or self._make_room(s))]
        if self._leaving is not None or self.num_preempted != num_preempted:
            decoding = SequenceState.DECODING
            chosen = [s for s in chosen if s is not self._leaving and s.state is decoding]
        if len(self._steps) > 1:
            running += self._table.prefilling.values()
            chosen += [s for s in running if s.in_flight and self._may_lead(s)]
        return chosen

    def next_prefills(self) -> list[Sequence]:
        """Who has prompt left that no step computes yet, the most urgent first."""
        left = [
            sequence
            for sequence in self._table.prefilling.values()
            if sequence.num_launched < sequence.num_tokens and sequence is not self._leaving
        ]
        return sorted(left, key=lambda s: s.urgency)

    def lower_promise(self, sequence: Sequence) -> None:
        """Its prompt is computed: it needs no more of windows than a decode does."""
        table = sequence.block_table
        table.promise(min(table.num_promised, self._promise(sequence)))

    def _make_room(self, sequence: Sequence) -> bool:
        """A block for its next token; the least urgent sequence makes room."""
        while sequence.state is SequenceState.DECODING and not _has_room(sequence):
            if not self._grow(sequence) and not self._preempt_last():
                return False
        return sequence.state is SequenceState.DECODING

    def _may_lead(self, sequence: Sequence) -> bool:
        """Whether its next token may be computed before the last one is read: it is certain to go
        on but for a word that ends it, and there is room."""
        pending = sequence.pending
        if not (
            pending
            and sequence is not self._leaving
            and not sequence.leases
            and not sequence.looks_back
            and len(sequence.outputs) + pending < sequence.max_outputs
        ):
            return False
        return _has_room(sequence) or self._grow(sequence)

    def _grow(self, sequence: Sequence) -> bool:
        """One more row of blocks, unless others were promised all that is left."""
        table = sequence.block_table
        return table.add_row(promise=max(table.num_promised, self._promise(sequence)))

    def _promise(self, sequence: Sequence) -> int:
        """Blocks of groups with a window that it may hold at a time when its next token is launched
        with all its prompt, the last chunk perhaps not recorded."""
        num_tokens = sequence.num_launched + 1
        num_ahead = max(STEPS_AHEAD, num_tokens - sequence.num_computed)
        return self._groups.most_held(num_tokens, num_ahead=num_ahead)

    def _preempt_last(self) -> bool:
        """To be recomputed later: the only one who loses is the least urgent, of equals the one who
        came last. False while a launched forward refers to it: it then sits this step out, and so
        does who needs room."""
        running = [*self._table.prefilling.values(), *self._table.decoding.values()]
        last = max((s for s in running if s.preemptible), key=lambda s: s.urgency)
        if last.in_flight:
            self._leaving = last
            return False
        self._table.preempt(last)
        self.num_preempted += 1
        return True


def _has_room(sequence: Sequence) -> bool:
    return sequence.num_launched < sequence.block_table.num_slots
