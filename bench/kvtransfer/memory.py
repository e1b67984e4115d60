"""The pools of the peers and of the limits: private memory, or a memfd as Baton's pools are.

Every page of private memory is touched before anything is timed. Huge pages are advised in the
tuned setting alone.
"""

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from bench.kvtransfer.mover import Setting


class Memory:
    """`num_bytes` of memory; `words` is all of it, `octets` too."""

    def __init__(self, num_bytes: int, *, setting: Setting, fd: int = -1) -> None:
        """Anonymous private memory, or with `fd` a shared mapping of that file."""
        if fd < 0:
            self._mapping = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._mapping = mmap.mmap(fd, num_bytes)
        if setting == "tuned":
            with suppress(OSError):  # a kernel without huge pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self.octets: NDArray[np.uint8] = np.frombuffer(self._mapping, dtype=np.uint8)
        self.words: NDArray[np.uint64] = self.octets.view(np.uint64)
        if fd < 0:
            self.words[:] = 0
        self.address = int(self.octets.ctypes.data)
        self.num_bytes = num_bytes

    def block(self, block_id: int, block_bytes: int) -> NDArray[np.uint8]:
        return self.octets[block_id * block_bytes : (block_id + 1) * block_bytes]
