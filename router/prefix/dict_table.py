"""The table of blocks where there is no C compiler: a dictionary, 20 times slower and larger."""

from collections.abc import Iterator, Sequence

import numpy as np

from protocol.blocks import HASH_BYTES
from router.prefix.table import NOBODY, Slots, num_hashes

SWEPT_AT_ONCE = 1024


class DictTable:
    """As `HolderTable`: hash -> the slots that hold it, as bits of a number."""

    num_lost = 0

    def __init__(self, *, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._holders: dict[bytes, int] = {}
        self._closed = 0
        self._gone = 0
        self._to_sweep: list[bytes] = []

    @property
    def num_blocks(self) -> int:
        return len(self._holders)

    def reserve_slots(self, num_slots: int) -> None:
        """There is always room."""

    def store_blocks(self, slot: int, packed: bytes) -> int:
        num_refused = 0
        for block in _hashes(packed):
            holders = self._holders.get(block, 0)
            if not holders and len(self._holders) >= self._max_blocks:
                num_refused += 1
                continue
            self._holders[block] = holders | 1 << slot
        return num_refused

    def evict_blocks(self, slot: int, packed: bytes) -> None:
        for block in _hashes(packed):
            self._remove(block, 1 << slot)

    def set_closed(self, slot: int, is_closed: bool) -> None:
        self._closed = self._closed & ~(1 << slot) | is_closed << slot

    def walk_chain(self, packed: bytes, slots: Slots, hoped: Slots | None) -> Slots:
        num, hopes = num_hashes(packed), (hoped if hoped is not None else np.zeros_like(slots))
        asked = sum(1 << slot for slot in slots.tolist() if slot != NOBODY)
        closed = dict(self._closed_depths(packed, asked & self._closed, 0, num))
        is_open = bool(asked & ~self._closed)
        found = [self._holders.get(block, 0) for block in _hashes(packed)] if is_open else []
        depths = np.zeros(len(slots), np.uint32)
        for place, (slot, hope) in enumerate(zip(slots.tolist(), hopes.tolist(), strict=True)):
            if slot == NOBODY:
                continue
            depth = max(closed.get(slot, 0), min(hope, num))
            while slot not in closed and depth < num and found[depth] >> slot & 1:
                depth += 1
            depths[place] = depth
        return depths

    def _closed_depths(
        self, packed: bytes, slots: int, low: int, high: int
    ) -> Iterator[tuple[int, int]]:
        """Each with how many leading blocks it holds, of slots that hold `low` to `high`."""
        while slots and low < high:
            middle = (low + high) // 2
            held = self._holders.get(_block(packed, middle), 0) & slots
            yield from self._closed_depths(packed, slots & ~held, low, middle)
            slots, low = held, middle + 1
        while slots:
            slot = slots.bit_length() - 1
            yield slot, low
            slots ^= 1 << slot

    def begin_sweep(self, slots: Sequence[int]) -> None:
        self._gone = sum(1 << slot for slot in slots)
        self._to_sweep = list(self._holders)

    def sweep_some(self) -> bool:
        for block in self._to_sweep[-SWEPT_AT_ONCE:]:
            self._remove(block, self._gone)
        del self._to_sweep[-SWEPT_AT_ONCE:]
        return not self._to_sweep

    def _remove(self, block: bytes, gone: int) -> None:
        before = self._holders.get(block, 0)
        after = before & ~gone
        if after:
            self._holders[block] = after
        elif before:
            del self._holders[block]


def _hashes(packed: bytes) -> Iterator[bytes]:
    for start in range(0, len(packed) - HASH_BYTES + 1, HASH_BYTES):
        yield packed[start : start + HASH_BYTES]


def _block(packed: bytes, number: int) -> bytes:
    return packed[number * HASH_BYTES : (number + 1) * HASH_BYTES]
