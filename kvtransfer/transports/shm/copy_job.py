"""A copy job in shared memory, on which both processes of a stream may work.

The sink makes it, fills one chunk after another in and copies; the source, told the job's number,
copies too. Pieces are claimed one batch at a time, so nobody waits for a side that is busy.
"""

import ctypes
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.memory.sealed import create_sealed, open_sealed
from kvtransfer.native.copy import Span
from kvtransfer.native.library import kernels
from protocol.errors import LayoutMismatch

MAX_RANGES: Final = 16_384
MAX_PIECES: Final = 4_096
MAX_PIECE_RANGES: Final = 4_096
_BATCH_BYTES: Final = 256 << 10
"""Claimed at a time: 20 us of copying, against 0.1 us for the claim."""
_FIELDS: Final = np.dtype(
    [
        ("header", "V128"),
        ("target_offsets", "<i8", MAX_RANGES),
        ("source_offsets", "<i8", MAX_RANGES),
        ("sizes", "<i8", MAX_RANGES),
        ("starts", "<i8", MAX_PIECES + 1),
        ("sums", "<u8", MAX_PIECES),
    ]
)
"""`CopyJob` in share.c."""
_ARRAYS: Final = ("target_offsets", "source_offsets", "sizes", "starts", "sums")


class CopyJob:
    """Made by the sink with `create`, mapped by the source with `open`."""

    def __init__(self, fd: int, mapping: mmap.mmap, library: ctypes.CDLL) -> None:
        self.fd = fd
        self.is_shut = False
        """`shut` was called since the last chunk was begun."""
        self.mapped = np.frombuffer(mapping, np.uint8)
        """The whole of it."""
        self._library = library
        self._mapping = mapping
        self._address = int(self.mapped.ctypes.data)
        fields = self.mapped.view(_FIELDS)[0]
        self._arrays = {name: fields[name] for name in _ARRAYS}

    @classmethod
    def create(cls) -> "CopyJob | None":
        """Without a chunk in it; None without the kernels. Raises OSError without a descriptor."""
        library = kernels()
        if library is None:
            return None
        fd, mapping = create_sealed("baton-copy-job", int(library.baton_kv_job_bytes()))
        return cls(fd, mapping, library)

    @classmethod
    def open(cls, fd: int) -> "CopyJob":
        """Map a sink's; takes `fd` even when it raises LayoutMismatch."""
        library = kernels()
        if library is None:
            os.close(fd)
            raise LayoutMismatch("no kernels to help with")
        num_bytes = int(library.baton_kv_job_bytes())
        mapping = open_sealed(fd, what="copy job", num_bytes=num_bytes, writable=True)
        return cls(fd, mapping, library)

    @staticmethod
    def fits(landing: Landing) -> bool:
        """Whether a chunk of this size has room."""
        target = landing.target
        if len(target.sizes_R) > MAX_RANGES or not 1 < len(target.starts_P) <= MAX_PIECES + 1:
            return False
        return int(np.diff(target.starts_P).max()) <= MAX_PIECE_RANGES

    def begin_chunk(self, landing: Landing) -> int | None:
        """Let both copy this chunk; the job's number. None while someone is still inside."""
        if not self.shut():
            return None
        target, source = landing.target, landing.source
        num_ranges, num_pieces = len(target.sizes_R), len(target.starts_P) - 1
        self._arrays["target_offsets"][:num_ranges] = target.offsets_R
        self._arrays["source_offsets"][:num_ranges] = source.offsets_R
        self._arrays["sizes"][:num_ranges] = target.sizes_R
        self._arrays["starts"][: num_pieces + 1] = target.starts_P
        batch = max(1, _BATCH_BYTES * num_pieces // max(1, landing.num_bytes))
        self.is_shut = False
        return int(self._library.baton_kv_begin_job(self._address, num_pieces, batch, 1))

    def copy_pieces(self, number: int, *, target: Span, source: Span) -> int:
        """Copy pieces of a job until none are left; how many. Raises ValueError for nonsense."""
        num_copied = int(
            self._library.baton_kv_copy_pieces(
                self._address, number, target.address, target.num_bytes,
                source.address, source.num_bytes,
            )
        )  # fmt: skip
        if num_copied < 0:
            raise ValueError("the copy job describes what cannot be copied")
        return num_copied

    def is_done_within(self, most_s: float) -> bool:
        """Spin until every piece is done; False when that takes longer than `most_s`."""
        return bool(self._library.baton_kv_await_job(self._address, int(most_s * 1e9)))

    def sums(self, num_pieces: int) -> NDArray[np.uint64]:
        """The checksums of the pieces of a job that is done, `[piece]`."""
        sums_P: NDArray[np.uint64] = self._arrays["sums"][:num_pieces].copy()
        return sums_P

    def shut(self) -> bool:
        """Let nobody in any more; True when nobody is inside. Then nobody writes by this job."""
        self.is_shut = True
        return bool(self._library.baton_kv_shut_job(self._address))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            del self._arrays, self.mapped
            self._mapping.close()
