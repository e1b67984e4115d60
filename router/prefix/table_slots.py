"""Slots of a table of blocks: given out, and taken back to be swept out of every set."""

from router.prefix.table import HolderTable

MAX_SLOTS = 1 << 16


class TableSlots:
    """A slot that was retired is given out again once a sweep has gone by. Beyond MAX_SLOTS in use
    or being swept, the sweep is ended at once."""

    def __init__(self, table: HolderTable) -> None:
        self._table = table
        self._num_made = 0
        self._free: list[int] = []
        self._retired: list[int] = []
        self._sweeping: list[int] = []

    @property
    def is_dirty(self) -> bool:
        """Blocks of retired slots are still in the table."""
        return bool(self._sweeping or self._retired)

    def take_slot(self) -> int:
        while not self._free and self._num_made == MAX_SLOTS and self.is_dirty:
            self.sweep_some()
        if self._free:
            return self._free.pop()
        if self._num_made == MAX_SLOTS:
            raise MemoryError(f"{MAX_SLOTS} workers are as many as the index can follow")
        self._table.reserve_slots(self._num_made + 1)
        self._num_made += 1
        return self._num_made - 1

    def retire_slot(self, slot: int) -> None:
        """Nobody asks for it any more."""
        self._retired.append(slot)

    def sweep_some(self) -> None:
        """One slice of a sweep, if there is anything to sweep."""
        if not self._sweeping:
            if not self._retired:
                return
            self._sweeping, self._retired = self._retired, []
            self._table.begin_sweep(self._sweeping)
        if self._table.sweep_some():
            self._free += self._sweeping
            self._sweeping = []
