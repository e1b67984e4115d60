"""The hash that C takes of pieces while it copies them is the library's, however they are cut."""

import socket

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvtransfer.native import flows
from kvtransfer.native.copy import Span, checksums, copy_ranges
from kvtransfer.native.library import kernels
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import XXH3

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler")

MOST_BYTES = 2_100
MOST_GAP = 70
NUM_BYTES = 1 << 17
SOURCE = np.random.default_rng(1).integers(0, 256, NUM_BYTES, dtype=np.uint8)
SIZES = st.lists(
    st.one_of(
        st.integers(0, 300), st.integers(0, MOST_BYTES), st.integers(0, 40).map(lambda n: 64 * n)
    ),
    max_size=8,
)  # fmt: skip
STARTS = st.integers(0, 130)


def span_of(array: NDArray[np.uint8]) -> Span:
    return Span(array.ctypes.data, array.nbytes)


def in_a_row(sizes: list[int], *, start: int, gap: int) -> Ranges:
    """One piece."""
    offsets = start + np.cumsum([0, *(size + gap for size in sizes)])[:-1]
    return Ranges(offsets.astype(np.int64), np.array(sizes, np.int64), np.array([0, len(sizes)]))


def bytes_of(array: NDArray[np.uint8], where: Ranges) -> bytes:
    pairs = zip(where.offsets_R.tolist(), where.sizes_R.tolist(), strict=True)
    return b"".join(array[offset : offset + size].tobytes() for offset, size in pairs)


@pytest.mark.parametrize("start", [0, 1, 31])
def test_pieces_of_every_length_hash_as_the_library_says(start: int) -> None:
    sizes_R = np.arange(MOST_BYTES + 1)
    where = Ranges(np.full_like(sizes_R, start), sizes_R, np.arange(MOST_BYTES + 2))
    expected = [
        xxhash.xxh3_64_intdigest(SOURCE[start : start + size].tobytes()) for size in sizes_R
    ]
    assert checksums(span_of(SOURCE), where).tolist() == expected
    target = np.zeros(NUM_BYTES, np.uint8)
    copied_P = copy_ranges(span_of(target), where, span_of(SOURCE), where)
    assert copied_P.tolist() == expected
    assert (target[start : start + MOST_BYTES] == SOURCE[start : start + MOST_BYTES]).all()


@given(SIZES, STARTS, STARTS, st.integers(0, MOST_GAP), st.integers(0, MOST_GAP))
def test_a_piece_hashes_the_same_however_it_is_cut(
    sizes: list[int], origin: int, into: int, source_gap: int, target_gap: int
) -> None:
    there = in_a_row(sizes, start=origin, gap=source_gap)
    here = in_a_row(sizes, start=into, gap=target_gap)
    target = np.zeros(NUM_BYTES, np.uint8)
    expected = [xxhash.xxh3_64_intdigest(bytes_of(SOURCE, there))]
    assert checksums(span_of(SOURCE), there).tolist() == expected
    assert copy_ranges(span_of(target), here, span_of(SOURCE), there).tolist() == expected
    assert bytes_of(target, here) == bytes_of(SOURCE, there)
    for offset, size in zip(here.offsets_R.tolist(), sizes, strict=True):
        target[offset : offset + size] = 0
    assert not target.any()  # nothing beside them was touched


@pytest.mark.parametrize("start", [0, 3, 64])
def test_a_large_copy_past_the_cache_hashes_the_same(start: int) -> None:
    there = in_a_row([50_000, 1, 63, 64, 65], start=start, gap=3)
    many = Ranges(
        np.tile(there.offsets_R, 8), np.tile(there.sizes_R, 8), np.arange(9) * len(there.sizes_R)
    )
    target = lines(NUM_BYTES)
    expected = [xxhash.xxh3_64_intdigest(bytes_of(SOURCE, there))] * 8
    assert copy_ranges(span_of(target), many, span_of(SOURCE), many).tolist() == expected
    assert bytes_of(target, there) == bytes_of(SOURCE, there)


LINE = 64


def lines(num_bytes: int) -> NDArray[np.uint8]:
    """Zeros from the beginning of a line on: only whole lines are stored past the cache."""
    room = np.zeros(num_bytes + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + num_bytes]


@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(99, 9_999), STARTS)
def test_a_piece_that_comes_bit_by_bit_hashes_the_same(
    pieces: list[list[int]], cut: int, start: int
) -> None:
    where = in_a_row([size for piece in pieces for size in piece], start=start, gap=5)
    starts_P = np.cumsum([0, *map(len, pieces)])
    where = Ranges(where.offsets_R, where.sizes_R, starts_P)
    body = SOURCE[: int(where.sizes_R.sum())].tobytes()
    target = np.zeros(NUM_BYTES, np.uint8)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        flow = flows.Flow(ours.fileno(), span_of(target), where, sum_kind=XXH3)
        for at in range(0, len(body), cut):
            theirs.send(body[at : at + cut])
            flows.receive([flow], idle=[], budget=1 << 20)
    assert bytes_of(target, where) == body
    if body:
        assert flow.state == flows.MOVED and flow.sums_P is not None
        ends = [0, *np.cumsum([sum(piece) for piece in pieces]).tolist()]
        assert flow.sums_P.tolist() == [
            xxhash.xxh3_64_intdigest(body[ends[i] : ends[i + 1]]) for i in range(len(pieces))
        ]
