"""Sealed memory: a file without a name that two processes map, and that neither can shrink.

So nothing is left in a file system, and no copy ends in SIGBUS. Does not know what lies in it.
"""

import fcntl
import mmap
import os
import struct
from contextlib import suppress
from typing import Final

import numpy as np

from protocol.errors import LayoutMismatch

HUGE_BYTES: Final = 2 << 20
MIN_HUGE: Final = 16
"""Smaller memory would waste more than it gains by huge pages."""
_MAP_TRIES: Final = 3
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEAL_FUTURE_WRITE: Final = 0x10
"""F_SEAL_FUTURE_WRITE: only the mapping we have can write, whoever gets the descriptor."""
_HEADER: Final = struct.Struct("<8sQQ")


def header(magic: bytes, *, num_blocks: int, block_bytes: int) -> bytes:
    """What memory of blocks begins with; `magic` has 8 bytes."""
    return _HEADER.pack(magic, num_blocks, block_bytes)


def create_sealed(
    name: str, num_bytes: int, *, start: bytes = b"", shared_writing: bool = True
) -> tuple[int, mmap.mmap]:
    """Its descriptor and our mapping: zeros after `start`. Without `shared_writing` nobody but us
    ever can write. Raises OSError without a descriptor or room."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        mapping = _map(fd, num_bytes, mmap.ACCESS_WRITE)
        if not shared_writing:
            with suppress(OSError):  # before Linux 5.1 readers are only asked not to write
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
    except OSError:
        os.close(fd)
        raise
    mapping[: len(start)] = start
    return fd, mapping


def open_sealed(
    fd: int, *, what: str, num_bytes: int, start: bytes = b"", writable: bool = False
) -> mmap.mmap:
    """Map a peer's; takes `fd` even when it raises.

    Raises LayoutMismatch, naming `what`, unless it is sealed and has exactly this size and `start`.
    """
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise LayoutMismatch(f"the peer's {what} is not sealed against shrinking")
        if os.fstat(fd).st_size != num_bytes:
            has = os.fstat(fd).st_size
            raise LayoutMismatch(f"the peer's {what} has {has} bytes, not {num_bytes}")
        mapping = _map(fd, num_bytes, mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        if mapping[: len(start)] != start:
            mapping.close()
            raise LayoutMismatch(f"the peer's {what} has another header than its message says")
    except (OSError, ValueError) as error:
        os.close(fd)
        raise LayoutMismatch(f"the peer's {what} cannot be mapped: {error}") from error
    except LayoutMismatch:
        os.close(fd)
        raise
    return mapping


def reader_fd(fd: int) -> int:
    """A new descriptor that can be mapped for reading only; the caller closes it."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def address_of(mapping: mmap.mmap) -> int:
    """Where it is mapped in this process."""
    return int(np.frombuffer(mapping, np.uint8).ctypes.data)


def _map(fd: int, num_bytes: int, access: int) -> mmap.mmap:
    """Map it where huge pages can be: at a multiple of their size, if that can be had."""
    mapping = mmap.mmap(fd, num_bytes, access=access)
    paddings = []
    for _ in range(_MAP_TRIES if num_bytes >= MIN_HUGE * HUGE_BYTES else 0):
        surplus = address_of(mapping) % HUGE_BYTES
        if not surplus:
            break
        # The kernel maps downwards: with the surplus taken, the next one ends that much lower.
        mapping.close()
        paddings.append(mmap.mmap(-1, surplus))
        mapping = mmap.mmap(fd, num_bytes, access=access)
    for padding in paddings:
        padding.close()
    with suppress(OSError, ValueError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping
