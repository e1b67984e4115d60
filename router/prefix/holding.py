"""One incarnation of a worker: which of its events were applied, and which came too early.

Events are numbered without a gap. One that comes before its turn waits for those between, a short
while and beside few others; then they count as missed, and a snapshot is wanted. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from protocol.blocks import ChangeKind
from protocol.ids import Epoch, WorkerId
from router.prefix.state import IndexState

EARLY_EVENTS = 64
"""Of one worker, that wait for others at most."""
EARLY_WAIT_S = 0.05
"""Redis gives events in order: hardly ever will those between follow."""


@dataclass(frozen=True, slots=True)
class PackedChange:
    """One change of a set of blocks; 16 bytes a hash, none when `cleared`."""

    kind: ChangeKind
    packed: bytes = b""

    @property
    def is_marker(self) -> bool:
        """A worker that wrote its whole set anew says so by storing nothing: what came before is
        in the set, and in no event."""
        return self.kind == "stored" and not self.packed


@dataclass(slots=True, kw_only=True, eq=False)
class Holding:
    worker: WorkerId
    epoch: Epoch
    number: int
    """Never another's: what is expected of it is not expected of its successor."""
    slot: int
    """Its place in answers."""
    table_slot: int
    """What its blocks are held by in the table."""
    is_prefix_closed: bool
    """After each of its events, as of `Registration`."""
    state: IndexState = IndexState.OFF
    sequence: int = 0
    """Of the last event applied."""
    lacks_room: bool = False
    """Some of its blocks were refused: a snapshot is no use before there is room."""
    _early: dict[int, PackedChange] = field(default_factory=dict)
    early_since: float = 0.0

    @property
    def waits(self) -> bool:
        """For events that were overtaken."""
        return bool(self._early)

    @property
    def is_closed_now(self) -> bool:
        """Without every event applied, parents of what is here may be missing."""
        return self.is_prefix_closed and self.state is IndexState.EXACT

    def changes_due(
        self, sequence: int, change: PackedChange, *, now: float
    ) -> Iterator[PackedChange]:
        """What is to be applied now that this event has come, in order."""
        if sequence <= self.sequence or sequence in self._early:
            return
        if self.state is not IndexState.EXACT:
            self.sequence = sequence
            yield change
            return
        if not self._early:
            self.early_since = now
        self._early[sequence] = change
        yield from self._next_changes()
        if self._early and (change.is_marker or len(self._early) > EARLY_EVENTS):
            yield from self.give_up()

    def give_up(self) -> Iterator[PackedChange]:
        """Those between are missed: what came early is applied all the same."""
        self.state = IndexState.DEGRADED
        for sequence, change in sorted(self._early.items()):
            if self._early.pop(sequence, None) is not None:
                self.sequence = sequence
                yield change

    def restart(self, sequence: int) -> Iterator[PackedChange]:
        """What is to be applied after a snapshot that holds all events up to this one."""
        self.state, self.sequence = IndexState.EXACT, sequence
        self._early = {number: kept for number, kept in self._early.items() if number > sequence}
        yield from self._next_changes()

    def doubt(self) -> Iterator[PackedChange]:
        """Events may have been missed."""
        if self.state is IndexState.EXACT:
            yield from self.give_up()

    def _next_changes(self) -> Iterator[PackedChange]:
        while (change := self._early.pop(self.sequence + 1, None)) is not None:
            self.sequence += 1
            yield change
