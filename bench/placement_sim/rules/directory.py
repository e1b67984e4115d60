"""Who holds which block, as events tell it: what rules that have no index of ours look up."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Directory:
    """Of the workers of one role, by index."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}

    def store(self, index: int, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._holders[block] = self._holders.get(block, 0) | 1 << index

    def evict(self, index: int, blocks: Sequence[int]) -> None:
        for block in blocks:
            left = self._holders.get(block, 0) & ~(1 << index)
            if left:
                self._holders[block] = left
            else:
                self._holders.pop(block, None)

    def depths(self, blocks: Sequence[int], *, num_workers: int) -> NDArray[np.int64]:
        """Leading blocks that each worker holds."""
        depths = np.zeros(num_workers, dtype=np.int64)
        num_bytes = -(-num_workers // 8)
        mask = (1 << num_workers) - 1
        for block in blocks:
            mask &= self._holders.get(block, 0)
            if not mask:
                break
            packed = np.frombuffer(mask.to_bytes(num_bytes, "little"), dtype=np.uint8)
            depths += np.unpackbits(packed, bitorder="little", count=num_workers)
        return depths
