"""The memory all KV blocks of one worker lie in, on a GPU.

Its checksums are those of `kvtransfer.kernels.copy`, which host pools can take too. Nothing here
waits for the engine's work.
"""

# Shapes: N blocks, P pieces.

import threading
import time
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.device.collectives import Collectives
from kvtransfer.device.driver import Driver, Mark, Stream, Sums
from kvtransfer.device.staging import DeviceStaging
from kvtransfer.device.table import GRAIN_BYTES, table
from kvtransfer.memory.generations import Generations
from kvtransfer.memory.pool import SUM_S
from kvtransfer.memory.staging import Staging
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import WORD_SUM, SumKind
from protocol.errors import TransferError

SUM_KIND: Final = WORD_SUM
"""What both ends must mean by a checksum."""
_LOOK_S: Final = 50e-6


class DeviceMemory:
    """A `kvtransfer.memory.pool.Pool` on one device."""

    turn_bytes: int | None = None

    def __init__(
        self, driver: Driver, *, num_blocks: int, block_bytes: int,
        collectives: Collectives | None = None,
    ) -> None:  # fmt: skip
        """A pool of zeros; with `collectives` it can be moved by NCCL too.

        Raises ValueError for a shape that kernels cannot move, TransferError without room for it.
        """
        if num_blocks < 1 or block_bytes < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_bytes} bytes: at least 1")
        if block_bytes % GRAIN_BYTES:
            raise ValueError(f"block_bytes: {block_bytes} is no multiple of {GRAIN_BYTES}")
        self.driver = driver
        self.collectives = collectives
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.span: Span = driver.allocate(num_blocks * block_bytes)
        """Where the blocks lie, as this process addresses them."""
        self._generations = Generations.create(num_blocks=num_blocks, block_bytes=block_bytes)
        self.device_staging = DeviceStaging(driver)
        """For whoever moves chunks through contiguous memory."""
        self.staging = Staging(driver)
        """Where chunks wait on their way over planes of hosts."""
        self._stream: Stream = driver.stream()
        self._summing = threading.Lock()
        self._closed = False

    @property
    def generations(self) -> memoryview:
        return self._generations.counts_N.data

    @property
    def generations_N(self) -> NDArray[np.uint64]:
        return self._generations.counts_N

    @property
    def sum_kinds(self) -> tuple[SumKind, ...]:
        return (SUM_KIND,)

    def checksums(self, ranges: Ranges, kind: SumKind | None = None) -> NDArray[np.uint64]:
        """Each piece's sum, `[piece]`; waits for this one launch, not for the device's others: for
        tests and tools.

        Raises ValueError for ranges outside the pool, TransferError when the device is lost.
        """
        sums = self.begin_sums(ranges, kind)
        _await(sums, "summed blocks")
        return sums.take_sums()

    def begin_sums(self, ranges: Ranges, kind: SumKind | None = None) -> Sums:
        """Raises ValueError for ranges outside the pool, TransferError when the device is lost."""
        assert kind in (None, SUM_KIND)
        self.span.check(ranges)
        with self._summing:
            return self.driver.sum(
                self._stream, source=self.span, table_5R=table(ranges),
                num_pieces=len(ranges.starts_P) - 1,
            )  # fmt: skip

    def mark(self) -> Mark:
        return self.driver.mark()

    def generations_fd(self) -> int:
        """A descriptor by which another process maps the generations; the caller closes it."""
        return self._generations.reader_fd()

    def read(self, block_id: int) -> bytes:
        """The bytes of one block; waits for the device: for tests and tools."""
        return self.driver.read(self.span, self._offset(block_id), self.block_bytes)

    def write(self, block_id: int, content: bytes) -> None:
        """Fill one block as the engine would, on its stream: for tests and tools."""
        assert len(content) == self.block_bytes
        self.driver.write(self.span, self._offset(block_id), content)

    def close(self) -> None:
        """Give the memory back; nobody may use it any more, here or in another process."""
        if not self._closed:
            self._closed = True
            self._generations.close()
            self._await_sums()
            self._stream.close()
            self.device_staging.close()
            self.staging.close()
            self.driver.free(self.span)

    def _await_sums(self) -> None:
        """Those that nobody takes any more read the pool still, and unmapping waits for nobody."""
        with suppress(TransferError):  # a device that is lost reads nothing
            _await(self._stream.record(), "summed the last blocks")

    def _offset(self, block_id: int) -> int:
        if not 0 <= block_id < self.num_blocks:
            raise ValueError(f"block_id {block_id} is not in a pool of {self.num_blocks} blocks")
        return block_id * self.block_bytes


def _await(launched: Sums | Mark, what: str) -> None:
    deadline_s = time.monotonic() + SUM_S
    while not launched.happened():
        if time.monotonic() > deadline_s:
            raise TransferError(f"the device has not {what} within {SUM_S} s")
        time.sleep(_LOOK_S)
