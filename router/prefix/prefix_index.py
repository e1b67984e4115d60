"""Which worker holds which sealed blocks: a local replica, answered without an await.

Pure: time is a value passed in. A hint, never a promise: a worker matches its own cache again.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from protocol.blocks import HASH_BYTES, ChangeKind
from protocol.ids import Epoch, WorkerId
from router.prefix.choose import make_table
from router.prefix.expected import ExpectedBlocks
from router.prefix.holding import EARLY_WAIT_S, Holding, PackedChange
from router.prefix.state import IndexState
from router.prefix.table import NOBODY, HolderTable, Slots
from router.prefix.table_slots import TableSlots

SPECULATIVE_TTL_S = 2.0
"""A dispatched prompt counts as cached this long before the worker's own events say so."""
DEFAULT_MAX_BLOCKS = 10_000_000
SLICE_BLOCKS = 4096
"""Of a snapshot, stored in less than a millisecond."""
ROOM = 0.875
"""What was refused is asked for again when no more than this part of the room is taken."""


@dataclass(slots=True, kw_only=True, eq=False)
class SnapshotLoad:
    """A worker's whole set on its way in, beside what is known, in slices: others may work between
    them. Ends by `finish`."""

    index: "PrefixIndex"
    holding: Holding
    table_slot: int
    sequence: int
    packed: bytes
    num_refused: int = 0

    def store_slices(self) -> Iterator[None]:
        """One slice a turn."""
        step = SLICE_BLOCKS * HASH_BYTES
        for start in range(0, len(self.packed), step):
            part = self.packed[start : start + step]
            self.num_refused += self.index.table.store_blocks(self.table_slot, part)
            yield

    def finish(self) -> bool:
        """Whether it is believed from now on; see `PrefixIndex.begin_snapshot`."""
        return self.index.end_snapshot(self)


class PrefixIndex:
    """Hash -> set of workers, and per worker what it takes to keep that true.

    Each incarnation numbers its events without a gap; a snapshot carries the number of the last
    event it contains, and is what a worker becomes exact by. Events of an epoch not followed are
    ignored. Answers are arrays by slot, one a followed incarnation.

    Bounded: of `max_blocks` different blocks; a worker of whose blocks some were refused is
    degraded until there is room again and its snapshot was read.
    """

    def __init__(
        self, *, max_blocks: int = DEFAULT_MAX_BLOCKS, table: HolderTable | None = None
    ) -> None:
        self.table = make_table(max_blocks=max_blocks) if table is None else table
        self.max_blocks = max_blocks
        self.num_refused = 0
        """Blocks that there was no room for, so far."""
        self._table_slots = TableSlots(self.table)
        self._holdings: dict[WorkerId, Holding] = {}
        self._by_number: dict[int, Holding] = {}
        self._num_followed = 0
        self._slots: Slots = np.zeros(0, np.uint32)
        self._free_slots: list[int] = []
        self._expected = ExpectedBlocks()
        self._waiting: dict[int, Holding] = {}
        self._num_lost = 0
        self._gaps: list[WorkerId] = []

    def follow_only_workers(
        self, workers: Mapping[WorkerId, Epoch], *, closed: Collection[WorkerId] = ()
    ) -> None:
        """Follow these incarnations; what any other held is forgotten. `closed`: of those,
        `is_prefix_closed`."""
        for worker in self._holdings.keys() - workers.keys():
            self.forget_worker(worker)
        for worker, epoch in workers.items():
            self.follow_worker(worker, epoch, is_prefix_closed=worker in closed)

    def follow_worker(
        self, worker: WorkerId, epoch: Epoch, *, is_prefix_closed: bool = False
    ) -> None:
        """Begin with this incarnation; what an earlier one held is forgotten."""
        current = self._holdings.get(worker)
        if current is not None and current.epoch == epoch:
            return
        self.forget_worker(worker)
        if not self._free_slots:
            self._free_slots.append(len(self._slots))
            self._slots = np.append(self._slots, np.uint32(NOBODY))
        holding = Holding(
            worker=worker,
            epoch=epoch,
            number=self._num_followed,
            slot=self._free_slots.pop(),
            table_slot=NOBODY,
            is_prefix_closed=is_prefix_closed,
        )
        self._num_followed += 1
        self._use_table_slot(holding, self._table_slots.take_slot())
        self._holdings[worker] = self._by_number[holding.number] = holding

    def forget_worker(self, worker: WorkerId) -> None:
        """At once for whoever asks; its blocks are swept in time."""
        holding = self._holdings.pop(worker, None)
        if holding is None:
            return
        del self._by_number[holding.number]
        self._waiting.pop(holding.number, None)
        self._table_slots.retire_slot(holding.table_slot)
        self._slots[holding.slot] = NOBODY
        self._free_slots.append(holding.slot)

    def apply_event(
        self,
        worker: WorkerId,
        epoch: Epoch,
        *,
        sequence: int,
        kind: ChangeKind,
        packed: bytes = b"",
        now: float,
    ) -> IndexState | None:
        """One event; returns the worker's state after it, None if it is not followed."""
        holding = self._holdings.get(worker)
        if holding is None or holding.epoch != epoch:
            return None
        if sequence == holding.sequence + 1 and not holding.waits:
            holding.sequence = sequence
            self._change(holding, kind, packed)
            return holding.state
        was_exact = holding.state is IndexState.EXACT
        self._apply(holding, holding.changes_due(sequence, PackedChange(kind, packed), now=now))
        if was_exact and holding.state is IndexState.DEGRADED and not holding.lacks_room:
            self._gaps.append(worker)
        return holding.state

    def give_up_waiting(self, *, now: float) -> None:
        """Events that were overtaken a while ago are missed: their workers want snapshots."""
        for holding in list(self._waiting.values()):
            if now >= holding.early_since + EARLY_WAIT_S:
                self._apply(holding, holding.give_up())
                self._gaps.append(holding.worker)

    def take_gaps(self) -> list[WorkerId]:
        """Workers of whose events some were missed since this was last asked, one a gap."""
        gaps, self._gaps = self._gaps, []
        return gaps

    @property
    def is_waiting(self) -> bool:
        """For events that were overtaken."""
        return bool(self._waiting)

    def begin_snapshot(
        self, worker: WorkerId, epoch: Epoch, *, sequence: int, packed: bytes
    ) -> SnapshotLoad | None:
        """Replace what is known of this incarnation, once all of it is stored; None, or False in
        the end, if the snapshot is no use: of another epoch, or older than events applied."""
        holding = self._holdings.get(worker)
        if holding is None or holding.epoch != epoch or sequence < holding.sequence:
            return None
        slot = self._table_slots.take_slot()
        return SnapshotLoad(
            index=self, holding=holding, table_slot=slot, sequence=sequence, packed=packed
        )

    def end_snapshot(self, load: SnapshotLoad) -> bool:
        """As `SnapshotLoad.finish`."""
        holding = load.holding
        if holding.number not in self._by_number or load.sequence < holding.sequence:
            self._table_slots.retire_slot(load.table_slot)
            return False
        self._use_table_slot(holding, load.table_slot)
        holding.lacks_room = False
        self._apply(holding, holding.restart(load.sequence))
        self._note_room(holding, load.num_refused)
        return True

    def load_snapshot(
        self, worker: WorkerId, epoch: Epoch, *, sequence: int, packed: bytes
    ) -> bool:
        """All of it at once."""
        load = self.begin_snapshot(worker, epoch, sequence=sequence, packed=packed)
        if load is None:
            return False
        for _ in load.store_slices():
            pass
        return load.finish()

    def doubt_all(self) -> None:
        """The feed was cut: events may have been missed, so every worker wants a snapshot."""
        for holding in self._holdings.values():
            self._apply(holding, holding.doubt())

    def doubted(self) -> list[tuple[WorkerId, Epoch]]:
        """Incarnations that want a snapshot, by name."""
        return sorted(
            (holding.worker, holding.epoch)
            for holding in self._holdings.values()
            if holding.state is not IndexState.EXACT and (not holding.lacks_room or self._has_room)
        )

    @property
    def is_dirty(self) -> bool:
        """Blocks of workers forgotten, or of sets replaced, still take room: sweep."""
        return self._table_slots.is_dirty

    def sweep_some(self) -> None:
        """One slice of it, less than a millisecond."""
        self._table_slots.sweep_some()
        self._note_lost()

    def expect_blocks(self, worker: WorkerId, packed: bytes, *, now: float) -> None:
        """A prompt was just sent there: believe it cached for `SPECULATIVE_TTL_S`."""
        holding = self._holdings.get(worker)
        if holding is not None:
            expires = now + SPECULATIVE_TTL_S
            self._expected.expect_prompt(holding.number, packed, expires=expires)

    def slot_of(self, worker: WorkerId) -> int | None:
        """Where answers have it, as long as this incarnation is followed."""
        holding = self._holdings.get(worker)
        return None if holding is None else holding.slot

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    def depths(self, packed: bytes, *, now: float) -> Slots:
        """How many leading blocks of the chain each followed worker holds, by slot."""
        self._expected.drop_expired(now)
        return self.table.walk_chain(packed, self._slots, self._hoped(packed))

    def depths_and_held(self, packed: bytes, *, now: float) -> tuple[Slots, Slots]:
        """`depths`, and the same as events alone tell it: one array where nothing of this chain is
        expected anywhere."""
        depths = self.depths(packed, now=now)
        if not self._expected.hoped_depths(packed):
            return depths, depths
        return depths, self.table.walk_chain(packed, self._slots, None)

    def state_of(self, worker: WorkerId) -> IndexState | None:
        holding = self._holdings.get(worker)
        return None if holding is None else holding.state

    @property
    def state(self) -> IndexState:
        """Of the whole: exact if every worker is, off if none was ever learned."""
        states = {holding.state for holding in self._holdings.values()}
        if not states or states == {IndexState.EXACT}:
            return IndexState.EXACT
        return IndexState.OFF if states == {IndexState.OFF} else IndexState.DEGRADED

    @property
    def states(self) -> dict[WorkerId, IndexState]:
        return {worker: holding.state for worker, holding in self._holdings.items()}

    def __len__(self) -> int:
        """Different blocks held by anyone, and those not swept yet."""
        return self.table.num_blocks

    @property
    def _has_room(self) -> bool:
        return len(self) <= ROOM * self.max_blocks

    def _hoped(self, packed: bytes) -> Slots | None:
        depths = self._expected.hoped_depths(packed)
        if not depths:
            return None
        hoped = np.zeros(len(self._slots), np.uint32)
        for number, depth in depths.items():
            holding = self._by_number.get(number)
            if holding is not None:
                hoped[holding.slot] = depth
        return hoped

    def _apply(self, holding: Holding, changes: Iterable[PackedChange]) -> None:
        for change in changes:
            self._change(holding, change.kind, change.packed)
        if holding.waits:
            self._waiting[holding.number] = holding
        else:
            self._waiting.pop(holding.number, None)
        self._mark_closed(holding)

    def _change(self, holding: Holding, kind: ChangeKind, packed: bytes) -> None:
        match kind:
            case "stored":
                self._note_room(holding, self.table.store_blocks(holding.table_slot, packed))
            case "evicted":
                self.table.evict_blocks(holding.table_slot, packed)
                self._note_lost()
            case "cleared":
                self._use_table_slot(holding, self._table_slots.take_slot())

    def _use_table_slot(self, holding: Holding, table_slot: int) -> None:
        if holding.table_slot != NOBODY:
            self._table_slots.retire_slot(holding.table_slot)
        holding.table_slot = self._slots[holding.slot] = table_slot
        self._mark_closed(holding)

    def _mark_closed(self, holding: Holding) -> None:
        self.table.set_closed(holding.table_slot, holding.is_closed_now)

    def _note_room(self, holding: Holding, num_refused: int) -> None:
        if num_refused:
            self.num_refused += num_refused
            holding.lacks_room = True
            holding.state = IndexState.DEGRADED
            self._mark_closed(holding)
        self._note_lost()

    def _note_lost(self) -> None:
        """It is not known whose they were, so nobody is exact."""
        num_lost = self.table.num_lost
        if num_lost == self._num_lost:
            return
        self.num_refused += num_lost - self._num_lost
        self._num_lost = num_lost
        for holding in self._holdings.values():
            holding.lacks_room = True
            self._apply(holding, holding.doubt())
