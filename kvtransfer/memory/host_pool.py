"""The memory all KV blocks of one worker lie in: a sealed memfd that another process can map.

The engine computes in `blocks` and counts allocations in `generations`, `kvtransfer` reads and
writes ranges of blocks. Does not know who owns a block.
"""

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtransfer.device.driver import Mark, Sums
from kvtransfer.memory.pool import WRITTEN
from kvtransfer.memory.sealed import (
    HUGE_BYTES,
    MIN_HUGE,
    address_of,
    create_sealed,
    header,
    open_sealed,
    reader_fd,
)
from kvtransfer.native.copy import Span, checksums
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import SUM_KINDS, XXH3, SumKind
from protocol.errors import LayoutMismatch

_MAGIC = b"BatonKV1"
_GENERATIONS_AT = 64
_PAGE_BYTES = 4096
_MADV_COLLAPSE = 25
"""Not yet in `mmap`; Linux 6.1."""


def _blocks_at(num_blocks: int, block_bytes: int) -> int:
    """Offset of block 0 in the file: a pool of many huge pages begins with one."""
    page_bytes = _PAGE_BYTES
    if num_blocks * block_bytes >= MIN_HUGE * HUGE_BYTES:
        page_bytes = HUGE_BYTES
    used = _GENERATIONS_AT + 8 * num_blocks
    return -(-used // page_bytes) * page_bytes


@dataclass(frozen=True, slots=True)
class _TakenSums:
    sums_P: NDArray[np.uint64]

    def happened(self) -> bool:
        return True

    def take_sums(self) -> NDArray[np.uint64]:
        return self.sums_P


class BlockMemory:
    """A `kvtransfer.memory.pool.Pool` in host memory."""

    turn_bytes: int | None = 8 << 20
    """Half a millisecond."""

    def __init__(
        self, *, fd: int, mapping: mmap.mmap, num_blocks: int, block_bytes: int,
        helped: bool = False,
    ) -> None:  # fmt: skip
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
        self.span = Span(address_of(mapping) + start, num_blocks * block_bytes)
        """Where the blocks are mapped in this process."""
        self.helped = helped
        """Another process of this user may map it for writing."""

    @classmethod
    def create(
        cls, *, num_blocks: int, block_bytes: int, helped: bool = False, huge: bool = False
    ) -> "BlockMemory":
        """A pool of zeros. Pages are taken from the machine as they are first written.

        `helped`: another process of this user may map it for writing too, to copy into slots
        that this one named; otherwise nobody else ever can. `huge`: take all memory now, in huge
        pages where the kernel gives them: scattered copies cost a fifth less, a GiB up to 2 s.
        """
        if num_blocks < 1 or block_bytes < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_bytes} bytes: at least 1")
        start = _blocks_at(num_blocks, block_bytes)
        fd, mapping = create_sealed(
            "baton-kv", start + num_blocks * block_bytes, shared_writing=helped,
            start=header(_MAGIC, num_blocks=num_blocks, block_bytes=block_bytes),
        )  # fmt: skip
        if huge:
            _collapse(mapping, start)
        return cls(
            fd=fd, mapping=mapping, num_blocks=num_blocks, block_bytes=block_bytes, helped=helped
        )

    @classmethod
    def open(
        cls, fd: int, *, num_blocks: int, block_bytes: int, writable: bool = False
    ) -> "BlockMemory":
        """Map a peer's pool, for reading unless told; takes `fd` even when it raises.

        Raises LayoutMismatch when the file is no pool of exactly that shape, or could shrink.
        """
        if num_blocks < 1 or block_bytes < 1:
            os.close(fd)
            raise LayoutMismatch("the peer's pool has no blocks")
        mapping = open_sealed(
            fd, what="pool", writable=writable,
            num_bytes=_blocks_at(num_blocks, block_bytes) + num_blocks * block_bytes,
            start=header(_MAGIC, num_blocks=num_blocks, block_bytes=block_bytes),
        )  # fmt: skip
        return cls(fd=fd, mapping=mapping, num_blocks=num_blocks, block_bytes=block_bytes)

    def reader_fd(self) -> int:
        """A new descriptor of this pool that can be mapped for reading only; the caller closes."""
        return reader_fd(self.fd)

    def block(self, block_id: int) -> memoryview:
        """The bytes of one block."""
        start = self._offset(block_id)
        return self.blocks[start : start + self.block_bytes]

    @property
    def sum_kinds(self) -> tuple[SumKind, ...]:
        return SUM_KINDS

    def checksums(self, ranges: Ranges, kind: SumKind | None = None) -> NDArray[np.uint64]:
        """Of each piece's bytes, `[piece]`, xxh3 unless told. Raises ValueError for ranges outside,
        or that cannot be summed so."""
        return checksums(self.span, ranges, kind or XXH3)

    def begin_sums(self, ranges: Ranges, kind: SumKind | None = None) -> Sums:
        return _TakenSums(self.checksums(ranges, kind))

    def mark(self) -> Mark:
        """What the engine wrote into host memory before this is written."""
        return WRITTEN

    def close(self) -> None:
        """Give the descriptor back, and the memory once nobody holds a view of it."""
        if self.fd < 0:
            return
        self.generations_N = np.empty(0, np.uint64)
        self.span = Span(0, 0)
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


def _collapse(mapping: mmap.mmap, start: int) -> None:
    """Make huge pages of it whatever the system's setting for shared memory says: the kernel
    wants one small page of each to be there, and collapses around it."""
    end = len(mapping) // HUGE_BYTES * HUGE_BYTES
    for at in range(start, end, HUGE_BYTES):
        mapping[at] = 0
    if start % HUGE_BYTES == 0 and end > start:
        with suppress(OSError, ValueError):
            mapping.madvise(_MADV_COLLAPSE, start, end - start)
