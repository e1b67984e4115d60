"""Scattered copies with their checksums, in C where the machine has a compiler.

`copy_ranges` moves pieces from one mapped pool to another and gives each piece's checksum, in one
pass past the cache and without the GIL; `checksums` only sums. Without a compiler twins of memmove,
xxhash and numpy do the same, at about half the speed. Neither knows who owns a byte; both check
that every range lies in its pool.
"""

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvtransfer.native.library import OUTSIDE, SUM_NUMBERS, UNFIT, kernels
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import WORD_SUM, WORD_SUM_GRAIN_BYTES, XXH3, SumKind

_ONE_OUTSIDE = "ranges: one lies outside its pool"
_NOT_WORDS = f"ranges: not all are multiples of {WORD_SUM_GRAIN_BYTES} bytes"
_GAMMA = np.uint64(0x9E37_79B9_7F4A_7C15)
_FIRST, _SECOND = np.uint64(0xBF58_476D_1CE4_E5B9), np.uint64(0x94D0_49BB_1331_11EB)


@dataclass(frozen=True, slots=True)
class Span:
    """A mapped span of this process: `num_bytes` from `address`."""

    address: int
    num_bytes: int

    def check(self, ranges: Ranges, kind: SumKind = XXH3) -> None:
        """Raise ValueError unless all ranges lie inside, and this kind can sum them."""
        if kind == WORD_SUM and (ranges.sizes_R % WORD_SUM_GRAIN_BYTES).any():
            raise ValueError(_NOT_WORDS)
        offsets_R, sizes_R = ranges.offsets_R, ranges.sizes_R
        outside_R = (sizes_R < 0) | (sizes_R > self.num_bytes) | (offsets_R < 0)
        outside_R |= offsets_R > self.num_bytes - np.clip(
            sizes_R, 0, self.num_bytes
        )  # no sum wraps
        if outside_R.any():
            at = int(np.flatnonzero(outside_R)[0])
            raise ValueError(
                f"range {offsets_R[at]}+{sizes_R[at]} of a span of {self.num_bytes} bytes"
            )


class HasSpan(Protocol):
    """Memory that bytes can land in."""

    @property
    def span(self) -> Span: ...


def copy_ranges(
    target: Span, target_ranges: Ranges, source: Span, source_ranges: Ranges,
    kind: SumKind = XXH3,
) -> NDArray[np.uint64]:  # fmt: skip
    """Copy each range over its counterpart; the checksum of each piece, `[piece]`.

    Both sides have the same sizes and starts. Raises ValueError for ranges out of bounds, or that
    this kind cannot sum, having copied nothing.
    """
    sums_P = _call(target, target_ranges.offsets_R, source, source_ranges, kind)
    if sums_P is not None:
        return sums_P
    target.check(target_ranges, kind)
    source.check(source_ranges)
    pairs = zip(
        target_ranges.offsets_R.tolist(), source_ranges.offsets_R.tolist(),
        source_ranges.sizes_R.tolist(), strict=True,
    )  # fmt: skip
    for into, origin, size in pairs:
        ctypes.memmove(target.address + into, source.address + origin, size)
    return checksums(target, target_ranges, kind)


def checksums(memory: Span, ranges: Ranges, kind: SumKind = XXH3) -> NDArray[np.uint64]:
    """Of each piece's bytes, its ranges one after another, `[piece]`. Raises ValueError for ranges
    out of bounds, or that this kind cannot sum."""
    sums_P = _call(None, None, memory, ranges, kind)
    if sums_P is not None:
        return sums_P
    memory.check(ranges, kind)
    return (_checksums_twin if kind == XXH3 else word_sums_twin)(memory, ranges)


def _call(
    target: Span | None, offsets_R: NDArray[np.int64] | None, source: Span, ranges: Ranges,
    kind: SumKind,
) -> NDArray[np.uint64] | None:  # fmt: skip
    """What the C kernels answer; None where there are none."""
    library = kernels()
    if library is None:
        return None
    num_pieces, num_ranges = len(ranges.starts_P) - 1, len(ranges.sizes_R)
    assert offsets_R is None or len(offsets_R) == num_ranges
    sums_P = np.empty(num_pieces, np.uint64)
    answer = library.baton_kv_copy(
        target.address if target else None, target.num_bytes if target else 0,
        None if offsets_R is None else _at(offsets_R), source.address, source.num_bytes,
        _at(ranges.offsets_R), _at(ranges.sizes_R), num_ranges, _at(ranges.starts_P), num_pieces,
        SUM_NUMBERS[kind], _at(sums_P),
    )  # fmt: skip
    if answer == OUTSIDE:
        raise ValueError(_ONE_OUTSIDE)
    if answer == UNFIT:
        raise ValueError(_NOT_WORDS)
    return sums_P


def _checksums_twin(memory: Span, ranges: Ranges) -> NDArray[np.uint64]:
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


def word_sums_twin(memory: Span, ranges: Ranges) -> NDArray[np.uint64]:
    """As `checksums` of that kind, where nothing could be compiled."""
    whole: Any = (ctypes.c_ubyte * memory.num_bytes).from_address(memory.address)
    offsets, sizes = ranges.offsets_R.tolist(), ranges.sizes_R.tolist()
    sums_P = np.zeros(len(ranges.starts_P) - 1, np.uint64)
    for piece, (first, last) in enumerate(itertools.pairwise(ranges.starts_P.tolist())):
        number = 0
        for at in range(first, last):
            words_W = np.frombuffer(whole, np.uint64, count=sizes[at] // 8, offset=offsets[at])
            numbers_W = np.arange(number + 1, number + 1 + len(words_W), dtype=np.uint64)
            sums_P[piece : piece + 1] += _mixed(words_W + numbers_W * _GAMMA).sum(dtype=np.uint64)
            number += len(words_W)
    return sums_P


def _mixed(z_W: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, as `mix` in `kvtransfer.kernels.copy`."""
    z_W = (z_W ^ (z_W >> np.uint64(30))) * _FIRST
    z_W = (z_W ^ (z_W >> np.uint64(27))) * _SECOND
    return z_W ^ (z_W >> np.uint64(31))


def _at(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous and array.itemsize == 8
    return int(array.__array_interface__["data"][0])
