"""What is moved: so many scattered blocks, and what each of their bytes must be afterwards.

Both ends of a pair compute the same ids and the same bytes from the case alone. Word w of a
source pool holds `w * _ODD`, so no two words are alike; a block's first word is its stamp, which
says in which iteration it was written.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SMALL_BLOCK_BYTES: Final = 32 * KIB
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
_SPARE: Final = 1.25
"""Pools are this much larger than what is moved, so that the ids are scattered."""
_BATCH_WORDS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    block_bytes: int
    total_bytes: int
    num_warm: int
    """Iterations before those that count."""
    num_timed: int
    standing: bool = False
    """The receiver waits already when the source says that the bytes are written."""
    pause_s: float = 0.0
    """How long it has waited by then, so that a receiver that sleeps does sleep."""

    @property
    def num_blocks(self) -> int:
        return self.total_bytes // self.block_bytes

    @property
    def pool_blocks(self) -> int:
        return max(self.num_blocks + 1, int(self.num_blocks * _SPARE))

    @property
    def pool_bytes(self) -> int:
        return self.pool_blocks * self.block_bytes

    @property
    def words(self) -> int:
        """64-bit words of a block."""
        return self.block_bytes // 8


@dataclass(frozen=True, slots=True)
class Move:
    """One iteration: block `source_N[n]` of one pool to `target_N[n]` of the other."""

    case: Case
    number: int
    source_N: NDArray[np.int64]
    target_N: NDArray[np.int64]

    @property
    def stamps_N(self) -> NDArray[np.uint64]:
        return (np.uint64(self.number + 1) << np.uint64(32)) | self.source_N.astype(np.uint64)


def move(case: Case, number: int) -> Move:
    """The ids of iteration `number`, drawn afresh."""
    random = np.random.default_rng((case.block_bytes, case.total_bytes, number))
    source_N = random.permutation(case.pool_blocks)[: case.num_blocks]
    target_N = random.permutation(case.pool_blocks)[: case.num_blocks]
    return Move(case, number, source_N, target_N)


def fill(words: NDArray[np.uint64]) -> None:
    """Write a whole source pool."""
    for start in range(0, len(words), _BATCH_WORDS):
        stop = min(len(words), start + _BATCH_WORDS)
        np.multiply(np.arange(start, stop, dtype=np.uint64), _ODD, out=words[start:stop])


def stamp(words: NDArray[np.uint64], move: Move) -> None:
    """Write the moved blocks afresh."""
    words[move.source_N * move.case.words] = move.stamps_N


def num_stale(words: NDArray[np.uint64], move: Move) -> int:
    """Blocks of the target pool whose stamp is not this iteration's."""
    return int(np.count_nonzero(words[move.target_N * move.case.words] != move.stamps_N))


def num_wrong(words: NDArray[np.uint64], move: Move) -> int:
    """Blocks of the target pool with any wrong byte."""
    case = move.case
    batch = max(1, _BATCH_WORDS // case.words)
    offsets = np.arange(case.words, dtype=np.uint64)
    blocks = words[: case.pool_blocks * case.words].reshape(case.pool_blocks, case.words)
    wrong = 0
    for start in range(0, case.num_blocks, batch):
        source = move.source_N[start : start + batch].astype(np.uint64)
        expected = (source[:, None] * np.uint64(case.words) + offsets) * _ODD
        expected[:, 0] = move.stamps_N[start : start + batch]
        differs = blocks[move.target_N[start : start + batch]] != expected
        wrong += int(np.count_nonzero(differs.any(axis=1)))
    return wrong
