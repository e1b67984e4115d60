"""The sum of words that hosts take in C: that of the kernels' twin, whatever ranges and cuts."""

import ctypes
import socket

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.copy_twins import sums_twin

from kvtransfer.device.table import table
from kvtransfer.native import copy, flows
from kvtransfer.native.copy import Span, checksums, copy_ranges
from kvtransfer.native.library import kernels
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import WORD_SUM, XXH3, best_kind

NUM_BYTES = 1 << 20


def filled(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, NUM_BYTES, dtype=np.uint8)


def span_of(array: NDArray[np.uint8]) -> Span:
    return Span(array.ctypes.data, array.nbytes)


def ranges(pieces: list[list[tuple[int, int]]]) -> Ranges:
    flat = [each for piece in pieces for each in piece]
    return Ranges(
        np.array([offset for offset, _ in flat], np.int64),
        np.array([size for _, size in flat], np.int64),
        np.cumsum([0, *map(len, pieces)]).astype(np.int64),
    )


def twin(array: NDArray[np.uint8], where: Ranges) -> list[int]:
    sums_P = torch.zeros(len(where.starts_P) - 1, dtype=torch.int64)
    words_W = torch.from_numpy(array.view(np.int64))
    sums_twin(words_W, torch.from_numpy(table(where)), sums_P)
    return [int(value) for value in sums_P.numpy().view(np.uint64)]


RANGE = st.tuples(
    st.integers(0, 999).map(lambda n: 16 * n), st.integers(0, 40).map(lambda n: 16 * n)
)
PIECES = st.lists(st.lists(RANGE, min_size=1, max_size=4), min_size=1, max_size=6)


@given(PIECES)
def test_hosts_and_devices_take_the_same_sum(pieces: list[list[tuple[int, int]]]) -> None:
    array, where = filled(1), ranges(pieces)
    expected = twin(array, where)
    assert checksums(span_of(array), where, WORD_SUM).tolist() == expected
    assert copy.word_sums_twin(span_of(array), where).tolist() == expected


@pytest.mark.parametrize("shift", [0, 8, 24])
def test_a_large_copy_is_whole_and_summed_wherever_it_begins(shift: int) -> None:
    source, target = filled(2), np.zeros(NUM_BYTES, np.uint8)
    there = ranges([[(0, 400_000 // 16 * 16)], [(500_000 // 16 * 16, 4_096), (16, 160)]])
    here = Ranges(there.offsets_R + shift, there.sizes_R, there.starts_P)
    sums_P = copy_ranges(span_of(target), here, span_of(source), there, WORD_SUM)
    assert sums_P.tolist() == twin(source, there)
    pairs = zip(here.offsets_R, there.offsets_R, there.sizes_R, strict=True)
    for into, origin, size in list(pairs)[:2]:
        assert (target[into : into + size] == source[origin : origin + size]).all()


def test_a_word_in_another_place_makes_another_sum() -> None:
    array = np.arange(256, dtype=np.uint8)
    before = checksums(span_of(array), ranges([[(0, 256)]]), WORD_SUM)
    swapped = np.roll(array, 8)
    assert checksums(span_of(swapped), ranges([[(0, 256)]]), WORD_SUM) != before


@pytest.mark.parametrize(
    ("offset", "size", "says"),
    [(0, 24, "multiples of 16"), (NUM_BYTES, 16, "outside|span"), (-16, 32, "outside|span")],
)
def test_what_cannot_be_summed_is_refused(offset: int, size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checksums(span_of(filled(3)), ranges([[(offset, size)]]), WORD_SUM)


@pytest.mark.parametrize("cut", [1, 63, 1_000, 65_536])
def test_a_body_is_summed_as_it_comes_however_it_is_cut(cut: int) -> None:
    if kernels() is None:
        pytest.skip("no C compiler")
    where = ranges(
        [[(0, 48), (4_096, 4_000)], [(65_536, 16)], [(256, 16), (70_000 // 16 * 16, 320)]]
    )
    content, target = filled(4), np.zeros(NUM_BYTES, np.uint8)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        flow = flows.Flow(ours.fileno(), span_of(target), where, sum_kind=WORD_SUM)
        body = content[: int(where.sizes_R.sum())].tobytes()
        for at in range(0, len(body), cut):
            theirs.send(body[at : at + cut])
            flows.receive([flow], idle=[], budget=1 << 20)
        assert flow.state == flows.MOVED and flow.sums_P is not None
    assert flow.sums_P.tolist() == twin(target, where)


def test_two_pools_agree_on_the_best_that_both_have() -> None:
    assert best_kind((XXH3, WORD_SUM), (XXH3, WORD_SUM)) == XXH3
    assert best_kind((XXH3, WORD_SUM), (WORD_SUM,)) == WORD_SUM
    assert best_kind((WORD_SUM,), (XXH3, WORD_SUM)) == WORD_SUM
    assert best_kind((XXH3,), (WORD_SUM,)) is None
    assert best_kind(("crc32c", WORD_SUM), (XXH3, WORD_SUM)) == WORD_SUM


def test_the_hash_of_hosts_is_what_it_was() -> None:
    array = filled(5)
    library = pytest.importorskip("xxhash")
    expected = library.xxh3_64_intdigest(ctypes.string_at(array.ctypes.data, 4_096))
    assert checksums(span_of(array), ranges([[(0, 4_096)]])).tolist() == [expected]
