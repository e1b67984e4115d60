"""The generations of a device pool's blocks, in a sealed memfd that another process can map.

The same words as in the header of a host pool, without the blocks. Owned by a `DeviceMemory`;
mapped for reading by the sinks of this host. Knows nothing of devices.
"""

import fcntl
import mmap
import os
import struct
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from protocol.errors import LayoutMismatch

_HEADER = struct.Struct("<8sQQ")  # magic, blocks, bytes of a block
_MAGIC = b"BatonKG1"
_AT = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


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
        total = _AT + 8 * num_blocks
        fd = os.memfd_create("baton-kv-generations", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            mapping = mmap.mmap(fd, total)
        except OSError:
            os.close(fd)
            raise
        mapping[: _HEADER.size] = _HEADER.pack(_MAGIC, num_blocks, block_bytes)
        return cls(fd, mapping, num_blocks=num_blocks)

    @classmethod
    def open(cls, fd: int, *, num_blocks: int, block_bytes: int) -> "Generations":
        """Map a peer's, for reading; takes `fd` even when it raises LayoutMismatch."""
        try:
            mapping = _map_foreign(fd, _AT + 8 * num_blocks)
            if mapping[: _HEADER.size] != _HEADER.pack(_MAGIC, num_blocks, block_bytes):
                raise LayoutMismatch("the peer's generations have another header than its word")
        except (OSError, ValueError) as error:
            os.close(fd)
            raise LayoutMismatch(f"the peer's generations cannot be mapped: {error}") from error
        except LayoutMismatch:
            os.close(fd)
            raise
        return cls(fd, mapping, num_blocks=num_blocks)

    def reader_fd(self) -> int:
        """A new descriptor that can be mapped for reading only; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the descriptor back, and the memory once nobody holds a view of it."""
        if self._fd < 0:
            return
        self.counts_N = np.empty(0, np.uint64)
        with suppress(BufferError):
            self._mapping.close()
        os.close(self._fd)
        self._fd = -1


def _map_foreign(fd: int, total: int) -> mmap.mmap:
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise LayoutMismatch("the peer's generations are not sealed against shrinking")
    if os.fstat(fd).st_size != total:
        raise LayoutMismatch(f"the peer's generations have {os.fstat(fd).st_size} bytes")
    return mmap.mmap(fd, total, access=mmap.ACCESS_READ)
