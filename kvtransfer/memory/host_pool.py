"""The memory all KV blocks of one worker lie in: a sealed memfd that another process can map.

Made by a worker at start; the engine computes in `blocks` and counts allocations in
`generations`, `kvtransfer` reads and writes ranges of blocks. Nothing appears in the file system,
so nothing can be left there. Does not know who owns a block.
"""

import fcntl
import mmap
import os
import struct
from contextlib import suppress
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvtransfer.native import copy as native
from kvtransfer.plan import NO_BLOCK, Ranges, whole_blocks
from protocol.errors import LayoutMismatch

_HEADER = struct.Struct("<8sQQ")  # magic, blocks, bytes of a block
_MAGIC = b"BatonKV1"
_GENERATIONS_AT = 64
_PAGE_BYTES = 4096
_HUGE_BYTES = 2 << 20
_MIN_HUGE = 16
"""Smaller pools would waste more than they gain."""
_MAP_TRIES = 3
_MADV_COLLAPSE = 25
"""Not yet in `mmap`; Linux 6.1."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""A pool that cannot shrink cannot make a reader's copy end in SIGBUS."""
_SEAL_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE: only the mapping we have can write, whoever gets the descriptor."""


def _blocks_at(num_blocks: int, block_bytes: int) -> int:
    """Offset of block 0 in the file: a pool of many huge pages begins with one."""
    page_bytes = _PAGE_BYTES
    if num_blocks * block_bytes >= _MIN_HUGE * _HUGE_BYTES:
        page_bytes = _HUGE_BYTES
    used = _GENERATIONS_AT + 8 * num_blocks
    return -(-used // page_bytes) * page_bytes


class Mark(Protocol):
    """A point in the engine's work."""

    def happened(self) -> bool:
        """What the engine launched before it is written. Never waits. Raises TransferError."""


class Pool(Protocol):
    """What sources and sinks need of the memory their blocks lie in, wherever that is."""

    num_blocks: int
    block_bytes: int

    @property
    def generations_N(self) -> NDArray[np.uint64]: ...

    def generation_sums(self, blocks_PB: NDArray[np.uint32]) -> NDArray[np.uint64]: ...

    def whole(self, blocks: NDArray[np.uint32]) -> Ranges: ...

    def checksums(self, ranges: Ranges) -> NDArray[np.uint64]: ...

    def mark(self) -> Mark: ...


class _Written:
    def happened(self) -> bool:
        return True


WRITTEN: Final[Mark] = _Written()
"""The point of work that is known to be done."""


class BlockMemory:
    """`num_blocks` blocks of `block_bytes`, one after another, and a generation for each.

    A block's generation is bumped whenever it is allocated afresh; a reader that finds the one it
    expects before and after its copy has copied one owner's bytes.
    """

    def __init__(
        self,
        *,
        fd: int,
        mapping: mmap.mmap,
        num_blocks: int,
        block_bytes: int,
        writable: bool,
        helped: bool = False,
    ) -> None:
        """Use `create` or `open`. Takes ownership of `fd`."""
        start = _blocks_at(num_blocks, block_bytes)
        self.fd = fd
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self._mapping = mapping
        self._whole = memoryview(mapping)
        self.blocks = self._whole[start : start + num_blocks * block_bytes]
        """All blocks' bytes, `[block, byte]` flattened."""
        self.generations = self._whole[_GENERATIONS_AT : _GENERATIONS_AT + 8 * num_blocks].cast("Q")
        self.generations_N: NDArray[np.uint64] = np.frombuffer(self.generations, np.uint64)
        """The same generations, for many at a time."""
        address = _address_of(mapping) + start
        self.span = native.Memory(address, num_blocks * block_bytes)
        """Where the blocks are mapped in this process."""
        self.writable = writable
        self.helped = helped
        """Another process of this user may map it for writing."""

    @classmethod
    def create(
        cls, *, num_blocks: int, block_bytes: int, helped: bool = False, huge: bool = False
    ) -> "BlockMemory":
        """A pool of zeros. Pages are taken from the machine as they are first written.

        `helped`: another process of this user may map it for writing too, to copy into slots
        that this one named; otherwise nobody else ever can. `huge`: take all memory now, in huge
        pages where the kernel gives them: scattered copies then cost a fifth less, and a start
        up to 2 s more per GiB.
        """
        if num_blocks < 1 or block_bytes < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_bytes} bytes: at least 1")
        total = _blocks_at(num_blocks, block_bytes) + num_blocks * block_bytes
        fd = os.memfd_create("baton-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            mapping = _map(fd, total, mmap.ACCESS_WRITE)
            if huge:
                _collapse(mapping, _blocks_at(num_blocks, block_bytes))
            if not helped:
                with suppress(OSError):  # before Linux 5.1 readers are only asked not to write
                    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
        except OSError:
            os.close(fd)
            raise
        mapping[: _HEADER.size] = _HEADER.pack(_MAGIC, num_blocks, block_bytes)
        return cls(
            fd=fd, mapping=mapping, num_blocks=num_blocks, block_bytes=block_bytes,
            writable=True, helped=helped,
        )  # fmt: skip

    @classmethod
    def open(
        cls, fd: int, *, num_blocks: int, block_bytes: int, writable: bool = False
    ) -> "BlockMemory":
        """Map a peer's pool, for reading unless told; takes `fd` even when it raises.

        Raises LayoutMismatch when the file is not a pool of exactly that shape, or could shrink
        under a reader.
        """
        try:
            if num_blocks < 1 or block_bytes < 1:
                raise LayoutMismatch("the peer's pool has no blocks")
            total = _blocks_at(num_blocks, block_bytes) + num_blocks * block_bytes
            mapping = _map_foreign(fd, total=total, writable=writable)
            if mapping[: _HEADER.size] != _HEADER.pack(_MAGIC, num_blocks, block_bytes):
                mapping.close()
                raise LayoutMismatch("the peer's pool has another header than its word")
        except (OSError, ValueError) as error:
            os.close(fd)
            raise LayoutMismatch(f"the peer's pool cannot be mapped: {error}") from error
        except LayoutMismatch:
            os.close(fd)
            raise
        return cls(
            fd=fd, mapping=mapping, num_blocks=num_blocks, block_bytes=block_bytes,
            writable=writable,
        )  # fmt: skip

    def view(self) -> "BlockMemory":
        """The same pool, mapped once more for reading."""
        return BlockMemory.open(
            self.reader_fd(), num_blocks=self.num_blocks, block_bytes=self.block_bytes
        )

    def reader_fd(self) -> int:
        """A new descriptor of this pool that can be mapped for reading only; the caller closes."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def block(self, block_id: int) -> memoryview:
        """The bytes of one block."""
        start = self._offset(block_id)
        return self.blocks[start : start + self.block_bytes]

    def whole(self, blocks: NDArray[np.uint32]) -> Ranges:
        """The ranges of whole blocks, one each."""
        return whole_blocks(blocks, self.block_bytes)

    def mark(self) -> Mark:
        """What the engine wrote into host memory before this is written."""
        return WRITTEN

    def generation_sums(self, blocks_PB: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """The sum of the generations of each piece's blocks, `[piece]`, NO_BLOCK left out."""
        if blocks_PB.shape[1] == 1:
            alone_P: NDArray[np.uint64] = self.generations_N[blocks_PB[:, 0]]
            return alone_P
        there_PB = blocks_PB != NO_BLOCK
        each_PB = self.generations_N[np.where(there_PB, blocks_PB, 0)]
        sums_P: NDArray[np.uint64] = np.where(there_PB, each_PB, 0).sum(axis=1, dtype=np.uint64)
        return sums_P

    def checksums(self, ranges: Ranges) -> NDArray[np.uint64]:
        """xxh3_64 of each piece's bytes, `[piece]`. Raises ValueError for ranges outside."""
        return native.checksums(self.span, ranges)

    def copy_from(
        self, source: "BlockMemory", source_ranges: Ranges, ranges: Ranges
    ) -> NDArray[np.uint64]:
        """Copy ranges of `source` over ours, in one copy and without the GIL; the checksum of
        each piece. Raises ValueError for ranges outside either pool."""
        assert self.writable
        return native.copy(self.span, ranges, source.span, source_ranges)

    def close(self) -> None:
        """Give the descriptor back, and the memory unless someone still holds a view of it:
        then it goes with the last view."""
        if self.fd < 0:
            return
        self.generations_N = np.empty(0, np.uint64)
        self.span = native.Memory(0, 0)
        with suppress(BufferError):
            for view in (self.blocks, self.generations, self._whole):
                view.release()
            self._mapping.close()
        os.close(self.fd)
        self.fd = -1

    def _offset(self, block_id: int) -> int:
        if not 0 <= block_id < self.num_blocks:
            raise ValueError(f"block_id {block_id} is not in a pool of {self.num_blocks} blocks")
        return block_id * self.block_bytes


def _map(fd: int, total: int, access: int) -> mmap.mmap:
    """Map a pool where huge pages can be: at a multiple of their size, if that can be had."""
    mapping = mmap.mmap(fd, total, access=access)
    paddings = []
    for _ in range(_MAP_TRIES if total >= _MIN_HUGE * _HUGE_BYTES else 0):
        surplus = _address_of(mapping) % _HUGE_BYTES
        if not surplus:
            break
        # The kernel maps downwards: with the surplus taken, the next one ends that much lower.
        mapping.close()
        paddings.append(mmap.mmap(-1, surplus))
        mapping = mmap.mmap(fd, total, access=access)
    for padding in paddings:
        padding.close()
    with suppress(OSError, ValueError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def _address_of(mapping: mmap.mmap) -> int:
    return int(np.frombuffer(mapping, np.uint8).ctypes.data)


def _collapse(mapping: mmap.mmap, start: int) -> None:
    """Make huge pages of it whatever the system's setting for shared memory says: the kernel
    wants one small page of each to be there, and collapses around it."""
    end = len(mapping) // _HUGE_BYTES * _HUGE_BYTES
    for at in range(start, end, _HUGE_BYTES):
        mapping[at] = 0
    if start % _HUGE_BYTES == 0 and end > start:
        with suppress(OSError, ValueError):
            mapping.madvise(_MADV_COLLAPSE, start, end - start)


def _map_foreign(fd: int, *, total: int, writable: bool) -> mmap.mmap:
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise LayoutMismatch("the peer's pool is not sealed against shrinking")
    if os.fstat(fd).st_size != total:
        raise LayoutMismatch(f"the peer's pool has {os.fstat(fd).st_size} bytes, not {total}")
    return _map(fd, total, mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
