"""Runs the Triton kernels by Triton's interpreter beside their twins; exits with 0 when equal.

Started by `tests/kernels/test_copy_kernels.py` with TRITON_INTERPRET=1.
"""

import os
from itertools import pairwise

import numpy as np
import torch
from support.copy_twins import copy_twin, sums_twin

from kvtransfer.device.table import GRAIN_BYTES, packed, table
from kvtransfer.kernels.copy import TILE_WORDS, copy
from kvtransfer.plan import Ranges

_SPAN_BYTES = 1 << 18


def scattered(dice: np.random.Generator) -> tuple[Ranges, Ranges]:
    """Pieces of some ranges of any whole size, about a tile's included, disjoint in both spans."""
    tile = TILE_WORDS * 8 // GRAIN_BYTES
    sizes_R = np.array([1, tile, tile - 1, tile + 1, 2 * tile + 3, *dice.integers(1, 300, 5)])
    starts_P = np.array([0, 1, 4, 4, len(sizes_R)])
    both = []
    for _ in range(2):
        gaps_R = dice.integers(0, 5, len(sizes_R))
        order_R = dice.permutation(len(sizes_R))
        ends_R = np.cumsum((sizes_R + gaps_R)[order_R])
        offsets_R = np.empty_like(sizes_R)
        offsets_R[order_R] = ends_R - sizes_R[order_R]
        assert ends_R[-1] * GRAIN_BYTES <= _SPAN_BYTES
        both.append(Ranges(offsets_R * GRAIN_BYTES, sizes_R * GRAIN_BYTES, starts_P))
    return both[0], both[1]


def check(source: Ranges, target: Ranges, source_W: torch.Tensor) -> None:
    table_5R = torch.from_numpy(table(source, target))
    num_pieces, longest = len(source.starts_P) - 1, int(table_5R[2].max())
    spans = [torch.zeros_like(source_W) for _ in range(2)]
    made = [torch.zeros(num_pieces, dtype=torch.int64) for _ in range(4)]
    copy(spans[0].data_ptr(), source_W.data_ptr(), table_5R, made[0], longest_words=longest)
    copy_twin(spans[1], source_W, table_5R, made[1])
    copy(None, source_W.data_ptr(), table_5R, made[2], longest_words=longest)
    sums_twin(source_W, table_5R, made[3])
    assert torch.equal(*spans) and spans[0].any()
    assert all(torch.equal(one, other) for one, other in pairwise(made))


def main() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    dice = np.random.default_rng(7)
    for _ in range(3):
        source, target = scattered(dice)
        words = dice.integers(-(1 << 63), (1 << 63) - 1, _SPAN_BYTES // 8)
        source_W = torch.from_numpy(words)
        check(source, target, source_W)
        check(source, packed(source), source_W)
        check(packed(target), target, source_W)


if __name__ == "__main__":
    main()
