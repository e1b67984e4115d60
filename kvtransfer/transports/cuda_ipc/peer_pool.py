"""A source's device pool as a sink of the same host sees it: its memory and its generations.

Made from what the source said and passed; read only by launched copies. The memory stays mapped
until no copy can be under way.
"""

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.device.driver import Driver, Span
from kvtransfer.memory.device_pool import SUM_KIND
from kvtransfer.memory.generations import Generations
from kvtransfer.memory.pool import generation_sums
from kvtransfer.plan import NO_BLOCK
from kvtransfer.transports.cuda_ipc.messages import CudaIpcSetup
from protocol.errors import LayoutMismatch


class PeerMemory:
    def __init__(self, driver: Driver, span: Span, generations: Generations, num_blocks: int):
        """Use `open`."""
        self.span = span
        self._driver = driver
        self._generations = generations
        self._num_blocks = num_blocks

    @classmethod
    def open(
        cls, driver: Driver, setup: CudaIpcSetup, fd: int, *, num_blocks: int, block_bytes: int
    ) -> "PeerMemory":
        """Map what was offered; takes `fd`. Raises TransferError when it cannot be used."""
        generations = Generations.open(fd, num_blocks=num_blocks, block_bytes=block_bytes)
        try:
            if (setup.driver, setup.sum_kind) != (driver.name, SUM_KIND):
                theirs = f"{setup.driver} with {setup.sum_kind}"
                raise LayoutMismatch(f"its driver is {theirs}, ours {driver.name} with {SUM_KIND}")
            span = driver.open(
                setup.handle, num_bytes=num_blocks * block_bytes, device=setup.device
            )
        except BaseException:
            generations.close()
            raise
        return cls(driver, span, generations, num_blocks)

    def why_not(self, landing: Landing) -> str:
        """Why this chunk's blocks are not to be read; empty when they are."""
        there_PB = landing.blocks_PB != NO_BLOCK
        if int(landing.blocks_PB[there_PB].max(initial=0)) >= self._num_blocks:
            return "the source named a block that it has not"
        generations_P: NDArray[np.uint64] = landing.pieces_P["generation"]
        if (generation_sums(self._generations.counts_N, landing.blocks_PB) != generations_P).any():
            return "the block has another generation"
        return ""

    def close(self) -> None:
        self._generations.close()
        self._driver.close(self.span)
