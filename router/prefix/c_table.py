"""The table of blocks in C: 21 bytes a block when full, about twice that before, and its sets.

A block is named by 64 bits of its hash: among ten million, two have one name with a chance of 3e-6.
"""

import ctypes
import weakref
from collections.abc import Sequence

import numpy as np

from router.prefix.table import Slots, num_hashes

BLOCKS_A_SET = 8
"""For as many blocks there is room for one more set of two or more slots: blocks of one text share
theirs. At most 11 bytes a block for 512 slots, as much again for each 512 more."""
SEGMENT_BLOCKS = 12_288
"""Split in 0.1 ms (`bench/prefix_index.py`)."""


class CTable:
    """As `HolderTable`. Memory is taken as it is needed, and kept."""

    def __init__(
        self,
        library: ctypes.PyDLL,
        *,
        max_blocks: int,
        max_sets: int | None = None,
        segment_blocks: int = SEGMENT_BLOCKS,
    ) -> None:
        max_sets = max(1024, max_blocks // BLOCKS_A_SET) if max_sets is None else max_sets
        self._library = library
        self._asked, self._asked_at = np.zeros(0, np.uint32), 0
        self._table = library.baton_prefix_make(max_blocks, max_sets, segment_blocks)
        if not self._table:
            raise MemoryError(f"no room for an index of {max_blocks} blocks")
        weakref.finalize(self, library.baton_prefix_drop, self._table)
        self.reserve_slots(1)

    @property
    def num_blocks(self) -> int:
        return int(self._library.baton_prefix_num_blocks(self._table))

    @property
    def num_lost(self) -> int:
        return int(self._library.baton_prefix_num_lost(self._table))

    @property
    def num_sets(self) -> int:
        """Of two or more slots."""
        return int(self._library.baton_prefix_num_sets(self._table))

    def reserve_slots(self, num_slots: int) -> None:
        if not self._library.baton_prefix_reserve_slots(self._table, num_slots):
            raise MemoryError(f"no room for {num_slots} slots")

    def store_blocks(self, slot: int, packed: bytes) -> int:
        refused = self._library.baton_prefix_store(self._table, slot, packed, num_hashes(packed))
        return int(refused)

    def evict_blocks(self, slot: int, packed: bytes) -> None:
        self._library.baton_prefix_evict(self._table, slot, packed, num_hashes(packed))

    def set_closed(self, slot: int, is_closed: bool) -> None:
        self._library.baton_prefix_set_closed(self._table, slot, is_closed)

    def walk_chain(self, packed: bytes, slots: Slots, hoped: Slots | None) -> Slots:
        if slots is not self._asked:  # its address takes as long as a short walk
            self._asked, self._asked_at = slots, slots.ctypes.data
        depths = np.empty(len(slots), np.uint32)
        is_done = self._library.baton_prefix_walk(
            self._table,
            packed,
            num_hashes(packed),
            self._asked_at,
            None if hoped is None else hoped.ctypes.data,
            len(slots),
            depths.ctypes.data,
        )
        if not is_done:
            raise MemoryError(f"no room to ask for {len(slots)} slots")
        return depths

    def begin_sweep(self, slots: Sequence[int]) -> None:
        gone = np.array(slots, np.uint32)
        self._library.baton_prefix_begin_sweep(self._table, gone.ctypes.data, len(gone))

    def sweep_some(self) -> bool:
        return bool(self._library.baton_prefix_sweep(self._table, 1))
