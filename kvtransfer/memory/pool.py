"""What sources and sinks need of the memory their blocks lie in, wherever that is.

A block has a generation, bumped whenever it is allocated afresh: a reader that finds the one it
expects before and after its copy has copied one owner's bytes.
"""

# Shapes: N blocks of the pool, P pieces, B source blocks of a piece.

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvtransfer.device.driver import Mark, Sums
from kvtransfer.plan import NO_BLOCK, Ranges
from kvtransfer.sum_kinds import SumKind
from protocol.layout import Layout


class Pool(Protocol):
    """`num_blocks` blocks of `block_bytes`, one after another. Does not know who owns a block."""

    num_blocks: int
    block_bytes: int
    turn_bytes: int | None
    """Most bytes to sum in one call, so that who calls is not kept from other things. None: sums
    are launched, at the same cost for its caller whatever they are of."""

    @property
    def sum_kinds(self) -> tuple[SumKind, ...]:
        """The checksums it can take of its blocks, the best first."""

    @property
    def generations(self) -> memoryview:
        """`[block]` uint64: what the engine counts in."""

    @property
    def generations_N(self) -> NDArray[np.uint64]:
        """The same, for many at a time."""

    def checksums(self, ranges: Ranges, kind: SumKind | None = None) -> NDArray[np.uint64]:
        """Of each piece, `[piece]`; None: of the best kind; waits. Raises ValueError for ranges
        outside, or that cannot be summed so, TransferError if lost."""

    def begin_sums(self, ranges: Ranges, kind: SumKind | None = None) -> Sums:
        """The same without a wait: a host's are there at once, a device's in one launch."""

    def mark(self) -> Mark:
        """The point that the engine's work has reached, for its thread."""

    def close(self) -> None:
        """Give the memory back; idempotent."""


def check_block_bytes(memory: Pool, layout: Layout) -> None:
    """Raise ValueError when the memory's blocks are not the layout's."""
    if memory.block_bytes != layout.block_bytes:
        raise ValueError(
            f"layout: a block has {layout.block_bytes} bytes, the memory's {memory.block_bytes}"
        )


class _Reached:
    def happened(self) -> bool:
        return True


SUM_S: Final = 2.0
"""Sums of a whole publish take a device a millisecond; after this it answers late, and who waits
for them is told so."""
WRITTEN: Final[Mark] = _Reached()
"""The point of work that is known to be done."""


def generation_sums(
    generations_N: NDArray[np.uint64], blocks_PB: NDArray[np.uint32]
) -> NDArray[np.uint64]:
    """The sum of the generations of each piece's blocks, `[piece]`, NO_BLOCK left out."""
    if blocks_PB.shape[1] == 1:
        alone_P: NDArray[np.uint64] = generations_N[blocks_PB[:, 0]]
        return alone_P
    there_PB = blocks_PB != NO_BLOCK
    each_PB = generations_N[np.where(there_PB, blocks_PB, 0)]
    sums_P: NDArray[np.uint64] = np.where(there_PB, each_PB, 0).sum(axis=1, dtype=np.uint64)
    return sums_P
