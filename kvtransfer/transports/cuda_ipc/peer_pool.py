"""A source's device pool as a sink of the same host sees it: its memory and its generations.

Made from what the source said and passed; read only by launched copies. The memory stays mapped
until no copy can be under way.
"""

from kvtransfer.chunk import Landing
from kvtransfer.device.driver import Driver, Span
from kvtransfer.memory.device_pool import SUM_KIND
from kvtransfer.memory.generations import Generations
from kvtransfer.transports.announcing import why_not_read
from kvtransfer.transports.cuda_ipc.messages import CudaIpcSetup
from protocol.errors import LayoutMismatch


class PeerMemory:
    def __init__(self, driver: Driver, span: Span, generations: Generations) -> None:
        """Use `open`."""
        self.span = span
        self._driver = driver
        self._generations = generations

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
        return cls(driver, span, generations)

    def why_not(self, landing: Landing) -> str:
        """Why this chunk's blocks are not to be read; empty when they are."""
        return why_not_read(landing, self._generations.counts_N)

    def close(self) -> None:
        self._generations.close()
        self._driver.close(self.span)
