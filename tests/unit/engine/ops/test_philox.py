import math
from collections.abc import Sequence

import numpy as np
import pytest

from engine.ops.cpu import words as native_words
from engine.ops.cpu.build import load
from engine.ops.cpu.words import all_words as words_in_c
from engine.ops.philox import MAX_GUMBEL, all_words, gumbel, philox4x32, words

VECTORS: list[tuple[Sequence[int], tuple[int, int], list[int]]] = [
    # kat_vectors of the Random123 library
    ((0, 0, 0, 0), (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_it_gives_the_published_vectors(
    counter: Sequence[int], key: tuple[int, int], expected: list[int]
) -> None:
    assert philox4x32(counter, key).tolist() == expected


def test_a_word_belongs_to_seed_position_and_token() -> None:
    """Counter (position, token // 4, 0), keyed by the seed's halves."""
    seed, position, token = 0x1234_5678_9ABC_DEF0, (7 << 32) + 5, 4 * 31 + 2
    four = philox4x32((5, 7, 31, 0), (0x9ABC_DEF0, 0x1234_5678))
    assert words(np.array([token]), seed=seed, position=position) == four[2]


def test_the_words_of_all_tokens_are_those_of_each() -> None:
    ids = np.array([20_001, 3, 0, 16_384, 5])
    all_V = all_words(20_002, seed=-5, position=1)
    assert np.array_equal(all_V[ids], words(ids, seed=-5, position=1))


@pytest.mark.parametrize("size", [1, 4, 1023, 1024, 20_002])
@pytest.mark.parametrize(("seed", "position"), [(0, 0), (-5, 1), (2**63 + 9, 2**32 + 3)])
def test_the_words_in_c_are_the_same(size: int, seed: int, position: int) -> None:
    load()  # or the twin would be compared with itself
    expected = all_words(size, seed=seed, position=position)
    assert np.array_equal(words_in_c(size, seed=seed, position=position), expected)


def test_without_kernels_the_words_are_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_words, "words_kernel", lambda: None)
    expected = all_words(100, seed=3, position=9)
    assert np.array_equal(words_in_c(100, seed=3, position=9), expected)


def test_negative_and_large_seeds_and_positions_are_their_own() -> None:
    ids = np.arange(8)
    seeds = (-1, 1, 2**63, 2**64 - 2, -(2**63) + 1)
    keys = [(seed, position) for seed in seeds for position in (3, 2**31 + 3, 2**32 + 3)]
    drawn = {tuple(words(ids, seed=seed, position=position)) for seed, position in keys}
    assert len(drawn) == len(keys)
    unsigned = words(ids, seed=2**64 - 1, position=3)
    assert np.array_equal(words(ids, seed=-1, position=3), unsigned)


def test_noise_is_finite_and_no_louder_than_its_bound() -> None:
    ends = gumbel(np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint64))
    assert np.isfinite(ends).all()
    assert (np.diff(ends) > 0).all()
    assert ends[-1] == pytest.approx(MAX_GUMBEL, abs=1e-12)


def test_words_fill_their_range_evenly() -> None:
    """The mean of 20,000 even numbers is within five standard deviations of a half."""
    numbers = all_words(20_000, seed=1, position=0) * 2.0**-32
    assert abs(numbers.mean() - 0.5) < 5 / math.sqrt(12 * len(numbers))
    assert len(set(numbers)) > 19_990
