"""The checksums of a pool's whole blocks: begun when they are written, kept once they are taken.

Never waits for a device. Knows neither leases nor who fetches.
"""

# Shapes: P blocks asked about, N blocks of the pool.

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.device.driver import Sums
from kvtransfer.memory.pool import Pool
from kvtransfer.plan import whole_blocks
from kvtransfer.sum_kinds import SumKind
from protocol.errors import TransferError

_NONE: Final = ~np.uint64(0)
"""No block's generation."""


@dataclass(frozen=True, slots=True, eq=False)
class _Summing:
    """Full blocks, of the generations they have, whose sums are being taken."""

    blocks_P: NDArray[np.uint32]
    generations_P: NDArray[np.uint64]
    sums: Sums


class BlockChecksums:
    """The checksums, of one kind, of whole blocks of one pool, each taken once, when it is written.

    Full blocks keep their bytes with their generation: a prefix that many share is summed once.
    """

    def __init__(self, memory: Pool, kind: SumKind) -> None:
        self._memory = memory
        self._kind = kind
        self._sums_N = np.zeros(memory.num_blocks, np.uint64)
        self._generations_N = np.full(memory.num_blocks, _NONE)
        """The generation that each sum was taken of."""
        self._begun_N = np.full(memory.num_blocks, _NONE)
        """The generation that each sum was last begun of."""
        self._under_way: deque[_Summing] = deque()

    def begin_sums(self, blocks_P: NDArray[np.uint32], generations_P: NDArray[np.uint64]) -> None:
        """Sum those of these full blocks that are not yet, but none that is being written again.
        Raises TransferError when the device is lost."""
        now_P = self._memory.generations_N[blocks_P]
        due_P = (now_P == generations_P) & (self._begun_N[blocks_P] != now_P)
        if due_P.any():
            blocks = np.unique(blocks_P[due_P])
            sums = self._begin(blocks)
            generations = self._begun_N[blocks] = self._memory.generations_N[blocks]
            self._under_way.append(_Summing(blocks, generations, sums))
        self._keep_sums()

    def taken_sums(
        self, blocks_P: NDArray[np.uint32], generations_P: NDArray[np.uint64]
    ) -> NDArray[np.uint64] | None:
        """Those of these full blocks, once all are there."""
        self._keep_sums()
        if (self._generations_N[blocks_P] != generations_P).any():
            return None
        sums_P: NDArray[np.uint64] = self._sums_N[blocks_P]
        return sums_P

    def _begin(self, blocks_P: NDArray[np.uint32]) -> Sums:
        ranges = whole_blocks(blocks_P, self._memory.block_bytes)
        return self._memory.begin_sums(ranges, self._kind)

    def _keep_sums(self) -> None:
        """Of those taken meanwhile; what a device failed at is begun again by who needs it."""
        while self._under_way:
            first = self._under_way[0]
            try:
                if not first.sums.happened():
                    return
            except TransferError:
                self._begun_N[first.blocks_P] = _NONE
            else:
                self._sums_N[first.blocks_P] = first.sums.take_sums()
                self._generations_N[first.blocks_P] = first.generations_P
            self._under_way.popleft()
