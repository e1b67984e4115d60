"""Scattered copies with their checksums, in C where the machine has a compiler.

`copy` moves pieces from one mapped pool to another and gives each piece's xxh3_64, in one pass
past the cache and without the GIL; `checksums` only hashes. Called by pools and data planes.
Without a compiler a twin of memmove and xxhash does the same, at about half the speed. Neither
knows who owns a byte; both check that every range lies in its pool.
"""

import ctypes
import itertools
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvtransfer.plan import Ranges
from protocol.kernels import Kernels, NoKernels

log = logging.getLogger(__name__)

KERNELS = Kernels(
    name="kvcopy",
    folder=Path(__file__).parent,
    flags=("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared"),
)
_STREAM_BYTES = 256 << 10
"""Copies of at least this much go past the cache: smaller ones still fit into it."""
_MIN_HASHED_BYTES = 241
"""XXH3 treats shorter inputs in another way, which the C twin leaves out."""
_STRIPE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Memory:
    """A mapped span of this process: `num_bytes` from `address`."""

    address: int
    num_bytes: int

    def check(self, ranges: Ranges) -> None:
        """Raise ValueError unless all ranges lie inside."""
        if not len(ranges.sizes_R):
            return
        ends_R = ranges.offsets_R + ranges.sizes_R
        lowest, highest = int(ranges.offsets_R.min()), int(ends_R.max())
        if lowest < 0 or highest > self.num_bytes or int(ranges.sizes_R.min()) < 0:
            raise ValueError(f"ranges {lowest}..{highest} of a span of {self.num_bytes} bytes")


@cache
def kernels() -> ctypes.CDLL | None:
    """The library, or None where it cannot be built: said once."""
    try:
        library = KERNELS.load()
    except NoKernels as error:
        log.warning("no C kernels, copies are slower", extra={"why": str(error)})
        return None
    library.baton_kv_copy.argtypes = [
        *(ctypes.c_void_p,) * 6, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int,
    ]  # fmt: skip
    library.baton_kv_copy.restype = None
    word = ctypes.c_uint64
    library.baton_kv_work.argtypes = [
        ctypes.c_void_p, word, ctypes.c_void_p, word, ctypes.c_void_p, word,
    ]  # fmt: skip
    library.baton_kv_work.restype = ctypes.c_int64
    library.baton_kv_shut.argtypes = [ctypes.c_void_p]
    library.baton_kv_put_up.argtypes = [ctypes.c_void_p, word, word, word]
    library.baton_kv_put_up.restype = word
    library.baton_kv_await.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.baton_kv_spin.argtypes = [ctypes.c_void_p, word, ctypes.c_int64]
    library.baton_kv_board_bytes.restype = ctypes.c_int64
    return library


def copy(
    target: Memory, target_ranges: Ranges, source: Memory, source_ranges: Ranges
) -> NDArray[np.uint64]:
    """Copy each range over its counterpart; the checksum of each piece, `[piece]`.

    Both sides have the same sizes and starts. Raises ValueError for ranges out of bounds.
    """
    target.check(target_ranges)
    source.check(source_ranges)
    assert len(target_ranges.offsets_R) == len(source_ranges.offsets_R)
    sizes_R = source_ranges.sizes_R
    library = kernels()
    if library is not None and fits(source_ranges):
        streaming = int(sizes_R.sum()) >= _STREAM_BYTES
        return _call(library, target, target_ranges, source, source_ranges, streaming)
    pairs = zip(
        target_ranges.offsets_R.tolist(), source_ranges.offsets_R.tolist(), sizes_R.tolist(),
        strict=True,
    )  # fmt: skip
    for into, origin, size in pairs:
        ctypes.memmove(target.address + into, source.address + origin, size)
    return checksums(target, target_ranges)


def checksums(memory: Memory, ranges: Ranges) -> NDArray[np.uint64]:
    """xxh3_64 of each piece's bytes, its ranges one after another, `[piece]`. Raises ValueError."""
    memory.check(ranges)
    library = kernels()
    if library is not None and fits(ranges):
        return _call(library, None, ranges, memory, ranges, False)
    return _checksums_twin(memory, ranges)


def _call(
    library: ctypes.CDLL, target: Memory | None, target_ranges: Ranges,
    source: Memory, ranges: Ranges, streaming: bool,
) -> NDArray[np.uint64]:  # fmt: skip
    num_pieces = len(ranges.starts_P) - 1
    sums_P = np.empty(num_pieces, np.uint64)
    library.baton_kv_copy(
        None if target is None else target.address, _at(target_ranges.offsets_R),
        source.address, _at(ranges.offsets_R), _at(ranges.sizes_R), _at(ranges.starts_P),
        num_pieces, _at(sums_P), int(streaming),
    )  # fmt: skip
    return sums_P


def fits(ranges: Ranges) -> bool:
    """Whether the C kernel takes these: whole stripes, and no short piece."""
    sizes_R, starts_P = ranges.sizes_R, ranges.starts_P
    if len(starts_P) < 2 or bool((sizes_R % _STRIPE_BYTES).any()):
        return False
    if len(sizes_R) == len(starts_P) - 1:
        return int(sizes_R.min()) >= _MIN_HASHED_BYTES
    totals_P = np.diff(np.concatenate(([0], np.cumsum(sizes_R)))[starts_P])
    return int(totals_P.min()) >= _MIN_HASHED_BYTES


def _checksums_twin(memory: Memory, ranges: Ranges) -> NDArray[np.uint64]:
    whole: Any = (ctypes.c_ubyte * memory.num_bytes).from_address(memory.address)
    span = memoryview(whole).cast("B")
    offsets, sizes = ranges.offsets_R.tolist(), ranges.sizes_R.tolist()
    starts = ranges.starts_P.tolist()
    sums_P = np.empty(len(starts) - 1, np.uint64)
    for piece, (first, last) in enumerate(itertools.pairwise(starts)):
        digest = xxhash.xxh3_64()
        for at in range(first, last):
            digest.update(span[offsets[at] : offsets[at] + sizes[at]])
        sums_P[piece] = digest.intdigest()
    return sums_P


def _at(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous and array.dtype.itemsize == 8
    return array.ctypes.data


__all__ = ["KERNELS", "Memory", "checksums", "copy", "fits", "kernels"]
