"""Checksums of a source's blocks, each taken once, when it is written.

Full blocks never change while they keep their generation, so a prefix that many requests share is
summed once. Knows no leases.
"""

import numpy as np
from numpy.typing import NDArray

from kvtransfer.memory.pool import Pool
from kvtransfer.plan import whole_blocks


class BlockChecksums:
    """The checksums of whole blocks of one pool, of whatever kind that takes."""

    def __init__(self, memory: Pool) -> None:
        self._memory = memory
        self._sums_N = np.zeros(memory.num_blocks, np.uint64)
        self._generations_N = np.full(memory.num_blocks, ~np.uint64(0))
        """The generation that each sum was taken of."""

    def take_sums(self, blocks_P: NDArray[np.uint32], generations_P: NDArray[np.uint64]) -> None:
        """Sum those of these full blocks that are not yet; one that has another generation by now
        is being written again, and left alone."""
        now_P = self._memory.generations_N[blocks_P]
        due_P = (now_P == generations_P) & (self._generations_N[blocks_P] != now_P)
        blocks = blocks_P[due_P]
        if len(blocks):
            self._sums_N[blocks] = self._sum(blocks)
            self._generations_N[blocks] = generations_P[due_P]

    def checksums(
        self, blocks_P: NDArray[np.uint32], *, generations_P: NDArray[np.uint64],
        full_P: NDArray[np.bool_],
    ) -> NDArray[np.uint64]:  # fmt: skip
        """The checksum of each; those not full may still grow, so theirs are taken afresh."""
        self.take_sums(blocks_P[full_P], generations_P[full_P])
        sums_P: NDArray[np.uint64] = self._sums_N[blocks_P]
        if not full_P.all():
            growing_P = blocks_P[~full_P]
            sums_P[~full_P] = self._sum(growing_P)
        return sums_P

    def _sum(self, blocks_P: NDArray[np.uint32]) -> NDArray[np.uint64]:
        return self._memory.checksums(whole_blocks(blocks_P, self._memory.block_bytes))
