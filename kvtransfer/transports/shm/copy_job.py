"""The board: one copy job in shared memory that both processes of a stream may work on.

The sink makes it, fills a job in and works on it; the source, told the job's number, helps. Pieces
are claimed one batch at a time, so nobody waits for a side that is busy.
"""

import ctypes
import fcntl
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.native import copy as native
from protocol.errors import LayoutMismatch

MAX_RANGES: Final = 16_384
MAX_PIECES: Final = 4_096
MAX_PIECE_RANGES: Final = 4_096
_BATCH_BYTES: Final = 256 << 10
"""Claimed at a time: 20 us of copying, against 0.1 us for the claim."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_HEADER: Final = 128


class Board:
    """Made by the sink with `create`, mapped by the source with `open`."""

    def __init__(self, fd: int, mapping: mmap.mmap, library: ctypes.CDLL) -> None:
        self.fd = fd
        self._library = library
        self.stopping = False
        """`stop` was asked for since the last job."""
        self._mapping = mapping
        whole = np.frombuffer(mapping, np.uint8)
        self._address = int(whole.ctypes.data)
        at = _HEADER
        self._ranges: list[NDArray[np.int64]] = []
        for _ in range(3):
            self._ranges.append(whole[at : at + 8 * MAX_RANGES].view(np.int64))
            at += 8 * MAX_RANGES
        self._starts = whole[at : at + 8 * (MAX_PIECES + 1)].view(np.int64)
        at += 8 * (MAX_PIECES + 1)
        self._sums = whole[at : at + 8 * MAX_PIECES].view(np.uint64)

    @classmethod
    def create(cls) -> "Board | None":
        """A board without a job; None without the kernels. Raises OSError without a descriptor."""
        library = native.kernels()
        if library is None:
            return None
        num_bytes = int(library.baton_kv_board_bytes())
        fd = os.memfd_create("baton-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, num_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, mmap.mmap(fd, num_bytes), library)
        except OSError:
            os.close(fd)
            raise

    @classmethod
    def open(cls, fd: int) -> "Board":
        """Map a sink's board; takes `fd` even when it raises LayoutMismatch."""
        library = native.kernels()
        try:
            if library is None:
                raise LayoutMismatch("no kernels to help with")
            num_bytes = int(library.baton_kv_board_bytes())
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            if not sealed or os.fstat(fd).st_size != num_bytes:
                raise LayoutMismatch("the peer's board has another size")
            return cls(fd, mmap.mmap(fd, num_bytes), library)
        except (OSError, LayoutMismatch) as error:
            os.close(fd)
            raise LayoutMismatch(f"no board: {error}") from error

    @staticmethod
    def takes(landing: Landing) -> bool:
        """Whether a job of this size fits, and the kernels take its ranges."""
        target = landing.target
        if len(target.sizes_R) > MAX_RANGES or not native.fits(target):
            return False
        return int(np.diff(target.starts_P).max()) <= MAX_PIECE_RANGES

    def begin(self, landing: Landing) -> int | None:
        """Put up a job on which both may work; its number. None while someone is still inside."""
        if not self.stop():
            return None
        target, source = landing.target, landing.source
        num_ranges, num_pieces = len(target.sizes_R), len(target.starts_P) - 1
        for into, values in zip(
            self._ranges, (target.offsets_R, source.offsets_R, target.sizes_R), strict=True
        ):
            into[:num_ranges] = values
        self._starts[: num_pieces + 1] = target.starts_P
        batch = max(1, _BATCH_BYTES * num_pieces // max(1, landing.num_bytes))
        self.stopping = False
        return int(self._library.baton_kv_put_up(self._address, num_pieces, batch, 1))

    def work(self, number: int, *, target: native.Memory, source: native.Memory) -> int:
        """Copy pieces of a job until none are left; how many. Raises ValueError when the board
        describes what cannot be."""
        num_copied = int(
            self._library.baton_kv_work(
                self._address, number, target.address, target.num_bytes,
                source.address, source.num_bytes,
            )
        )  # fmt: skip
        if num_copied < 0:
            raise ValueError("the board describes what cannot be copied")
        return num_copied

    def wait(self, most_s: float) -> bool:
        """Spin until every piece is done; False when that takes longer than `most_s`."""
        return bool(self._library.baton_kv_await(self._address, int(most_s * 1e9)))

    def sums(self, num_pieces: int) -> NDArray[np.uint64]:
        """The checksums of the pieces of a job that is done."""
        return self._sums[:num_pieces].copy()

    def stop(self) -> bool:
        """Let nobody in any more; True when nobody is inside. Then nobody writes by this board."""
        self.stopping = True
        return bool(self._library.baton_kv_shut(self._address))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._ranges = []
            del self._starts, self._sums
            self._mapping.close()
