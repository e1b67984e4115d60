"""How pieces are cut into chunks, for any sizes and bounds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.chunking import LEAST_BYTES, Bounds, cut

KIB, MIB = 1 << 10, 1 << 20
piece_sizes = st.lists(st.sampled_from((1, 7, 30, 90, 150, 400)), max_size=40)


def bounds(most: int, pieces: int) -> Bounds:
    return Bounds(least_bytes=100, most_bytes=most, most_pieces=pieces)


@given(sizes=piece_sizes, most=st.integers(100, 300), pieces=st.integers(1, 8), more=st.booleans())
def test_chunks_are_within_their_bounds_and_miss_no_piece(
    sizes: list[int], most: int, pieces: int, more: bool
) -> None:
    bytes_P = np.array(sizes, np.int64)
    chunks = cut(bytes_P, bounds(most, pieces), more=more)
    sent = [position for chunk in chunks for position in chunk]
    assert sent == list(range(len(sent)))
    held = int(bytes_P[len(sent) :].sum())
    assert held == 0 or (more and held < 100)
    for chunk in chunks:
        assert 1 <= len(chunk) <= pieces
        assert len(chunk) == 1 or bytes_P[list(chunk)].sum() <= most


@given(sizes=piece_sizes, most=st.integers(100, 300), pieces=st.integers(1, 8), more=st.booleans())
def test_a_small_chunk_fits_neither_neighbour(
    sizes: list[int], most: int, pieces: int, more: bool
) -> None:
    bytes_P = np.array(sizes, np.int64)
    chunks = cut(bytes_P, bounds(most, pieces), more=more)
    for one, other in pairwise(chunks):
        together = bytes_P[one.start : other.stop].sum()
        small = min(bytes_P[list(one)].sum(), bytes_P[list(other)].sum()) < 100
        assert not small or together > most or len(one) + len(other) > pieces


def sizes_of(num_pieces: int, piece_bytes: int, *, more: bool = False) -> list[int]:
    bytes_P = np.full(num_pieces, piece_bytes, np.int64)
    chunks = cut(bytes_P, Bounds(most_bytes=8 * MIB, most_pieces=4096), more=more)
    return [len(chunk) * piece_bytes for chunk in chunks]


def test_a_request_is_shared_out_evenly() -> None:
    assert sizes_of(9, MIB) == [5 * MIB, 4 * MIB]
    assert sizes_of(2048, 32 * KIB) == [8 * MIB] * 8


def test_a_small_rest_waits_for_what_is_still_computed() -> None:
    assert sizes_of(31, 32 * KIB, more=True) == []
    assert sizes_of(32, 32 * KIB, more=True) == [MIB]


def test_what_is_all_there_is_goes_however_small() -> None:
    assert 32 * KIB < LEAST_BYTES
    assert sizes_of(1, 32 * KIB) == [32 * KIB]


def test_nothing_ready_is_no_chunk() -> None:
    assert sizes_of(0, MIB) == []


def test_bounds_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="least <= most"):
        Bounds(most_bytes=KIB, most_pieces=1)
