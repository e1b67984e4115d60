"""Blocks that this router has seen in prompts: what caches without bounds would have held.

Two Bloom filters, of which the older is emptied when the newer is full: of the last MAX_BLOCKS
different blocks at least, of twice as many at most. A block never seen is taken for a seen one once
in 500 at worst, so a beginning is told too long by 0.002 blocks on average, and never too short.
"""

import ctypes

import numpy as np
from numpy.typing import NDArray

from router.prefix.native.library import kernels
from router.prefix.table import num_hashes

MAX_BLOCKS = 8 << 20
"""Each filter has 16 bits for each of them: 16 MB."""
BITS_A_BLOCK = 16
_NUM_PROBES = 6


class SeenBlocks:
    """`max_blocks` is a power of two."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._num_bits = max_blocks * BITS_A_BLOCK
        self._newer, self._older = self._filter(), self._filter()
        self._num_added = ctypes.c_uint64(0)
        self._library = kernels()

    def see_prompt(self, packed: bytes) -> int:
        """How many leading blocks were seen before; now all of them are."""
        if self._num_added.value >= self._max_blocks:
            self._older, self._newer = self._newer, self._filter()
            self._num_added.value = 0
        if self._library is None:
            return self._see(packed)
        seen = self._library.baton_prefix_see(
            self._newer.ctypes.data,
            self._older.ctypes.data,
            self._num_bits - 1,
            packed,
            num_hashes(packed),
            ctypes.addressof(self._num_added),
        )
        return int(seen)

    def _filter(self) -> NDArray[np.uint64]:
        return np.zeros(max(1, self._num_bits // 64), np.uint64)

    def _see(self, packed: bytes) -> int:
        """The twin of `baton_prefix_see`."""
        pairs = np.frombuffer(packed, "<u8").reshape(-1, 2)
        steps = np.arange(_NUM_PROBES, dtype=np.uint64)
        probes = pairs[:, :1] + steps * (pairs[:, 1:] | np.uint64(1))
        bits = probes & np.uint64(self._num_bits - 1)
        places, masks = bits // np.uint64(64), np.uint64(1) << bits % np.uint64(64)
        newer = ((self._newer[places] & masks) != 0).all(axis=1)
        seen = newer | ((self._older[places] & masks) != 0).all(axis=1)
        np.bitwise_or.at(self._newer, places[~newer], masks[~newer])
        self._num_added.value += int((~newer).sum())
        return int(len(seen) if seen.all() else seen.argmin())
