"""Random numbers that are a function of a counter: nothing to store, nothing to hand over.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); checked
against the vectors of its reference library.
"""

# Shapes: N counters or tokens.

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""32-bit words, each in 64 bits: products need the room."""
_MASK = 0xFFFF_FFFF
_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD251_1F53), np.uint64(0xCD9E_8D57))
_STEPS = (0x9E37_79B9, 0xBB67_AE85)
_HALF, _LOW = np.uint64(32), np.uint64(_MASK)
_TILE = 4_096
"""Counters at a time: their words stay in the cache."""
MAX_GUMBEL = -math.log(-math.log1p(-(2.0**-33)))
"""22.87, that of the largest word: no noise is louder."""


def philox4x32(counter: Sequence[Words | int], key: tuple[int, int]) -> Words:
    """The four words of each counter, [4, N], evenly distributed over counters and keys. A word
    of the counter is an array [N] or the same for all."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(_ROUNDS):
        one, other = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (other >> _HALF) ^ c1 ^ np.uint64(k0), (one >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = other & _LOW, one & _LOW
        k0, k1 = (k0 + _STEPS[0]) & _MASK, (k1 + _STEPS[1]) & _MASK
    return np.stack((c0, c1, c2, c3))


def place(*, seed: int, position: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The counter's first two words and the key: halves of position and seed, low ones first."""
    return (position & _MASK, position >> 32 & _MASK), (seed & _MASK, seed >> 32 & _MASK)


def words(ids_N: NDArray[np.int64], *, seed: int, position: int) -> Words:
    """The word of each token id at this position: word id % 4 of counter (position, id // 4)."""
    (low, high), key = place(seed=seed, position=position)
    words_N = np.empty(len(ids_N), dtype=np.uint64)
    for start in range(0, len(ids_N), _TILE):
        ids = ids_N[start : start + _TILE]
        four_4N = philox4x32((low, high, (ids // 4).astype(np.uint64), 0), key)
        words_N[start : start + _TILE] = four_4N[ids % 4, np.arange(len(ids))]
    return words_N


def all_words(size: int, *, seed: int, position: int) -> Words:
    """`words` of ids 0 to size - 1, at a quarter of the work."""
    (low, high), key = place(seed=seed, position=position)
    counters_N = np.arange(-(-size // 4), dtype=np.uint64)
    tiles = (counters_N[start : start + _TILE] for start in range(0, len(counters_N), _TILE))
    fours = [philox4x32((low, high, tile, 0), key).T.ravel() for tile in tiles]
    return np.concatenate(fours)[:size]


def gumbel(words_N: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float64]:
    """-log(-log(u)) with u = (word + 0.5) / 2^32: the largest of score + gumbel over all tokens
    is each token with the probability that softmax gives it (Gumbel 1954)."""
    noise: NDArray[np.float64] = -np.log(-np.log((words_N + 0.5) * 2.0**-32))
    return noise
