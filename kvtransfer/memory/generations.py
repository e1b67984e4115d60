"""The generations of a device pool's blocks, in a sealed memfd that another process can map.

The same words as in the header of a host pool, without the blocks. Knows nothing of devices.
"""

import mmap
import os
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from kvtransfer.memory.sealed import create_sealed, header, open_sealed, reader_fd

_MAGIC = b"BatonKG1"
_AT = 64


class Generations:
    """`counts_N[block]`: bumped whenever a block is allocated afresh."""

    def __init__(self, fd: int, mapping: mmap.mmap, *, num_blocks: int) -> None:
        """Use `create` or `open`. Takes ownership of `fd`."""
        self._fd = fd
        self._mapping = mapping
        self.counts_N: NDArray[np.uint64] = np.frombuffer(
            mapping, np.uint64, count=num_blocks, offset=_AT
        )

    @classmethod
    def create(cls, *, num_blocks: int, block_bytes: int) -> "Generations":
        start = header(_MAGIC, num_blocks=num_blocks, block_bytes=block_bytes)
        fd, mapping = create_sealed("baton-kv-generations", _AT + 8 * num_blocks, start=start)
        return cls(fd, mapping, num_blocks=num_blocks)

    @classmethod
    def open(cls, fd: int, *, num_blocks: int, block_bytes: int) -> "Generations":
        """Map a peer's, for reading; takes `fd` even when it raises LayoutMismatch."""
        start = header(_MAGIC, num_blocks=num_blocks, block_bytes=block_bytes)
        num_bytes = _AT + 8 * num_blocks
        mapping = open_sealed(fd, what="generations", num_bytes=num_bytes, start=start)
        return cls(fd, mapping, num_blocks=num_blocks)

    def reader_fd(self) -> int:
        """A new descriptor that can be mapped for reading only; the caller closes it."""
        return reader_fd(self._fd)

    def close(self) -> None:
        """Give the descriptor back, and the memory once nobody holds a view of it."""
        if self._fd < 0:
            return
        self.counts_N = np.empty(0, np.uint64)
        with suppress(BufferError):
            self._mapping.close()
        os.close(self._fd)
        self._fd = -1
