"""The copy and sum kernels beside their torch twins, without a GPU.

Triton decides at import whether it interprets, so the comparison runs in a process of its own.
"""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.copy_twins import copy_twin, mix_twin, sums_twin
from support.gpu import ENVIRONMENT

from kvtransfer.device.table import GRAIN_BYTES, packed, table
from kvtransfer.plan import Ranges

_WITHIN_S = 100


def ranges(offsets: list[int], sizes: list[int], starts: list[int]) -> Ranges:
    return Ranges(np.array(offsets), np.array(sizes), np.array(starts))


def splitmix(words: list[int]) -> int:
    """The documented sum, word by word, in integers without bound."""
    total, all_ones = 0, (1 << 64) - 1
    for number, word in enumerate(words):
        z = (word + (number + 1) * 0x9E37_79B9_7F4A_7C15) & all_ones
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & all_ones
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & all_ones
        total += z ^ (z >> 31)
    return total & all_ones


def unsigned(sums_P: torch.Tensor) -> list[int]:
    return [value % (1 << 64) for value in sums_P.tolist()]


def test_the_kernels_do_what_their_twins_do() -> None:
    environment = {**ENVIRONMENT, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "support.interpreted_kernels"]
    done = subprocess.run(
        command, env=environment, capture_output=True, timeout=_WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_the_sum_is_the_documented_one() -> None:
    source_W = torch.tensor([1, -2, 3 << 60, 0, 7, 8])
    sums_P = torch.zeros(2, dtype=torch.int64)
    both = ranges([0, 32, 16], [16, 16, 16], [0, 2, 3])
    sums_twin(source_W, torch.from_numpy(table(both)), sums_P)
    words = [value % (1 << 64) for value in source_W.tolist()]
    assert unsigned(sums_P) == [splitmix(words[:2] + words[4:]), splitmix(words[2:4])]


def test_a_copy_sums_what_it_wrote_in_the_order_of_the_target() -> None:
    source_W = torch.arange(100)
    target_W, sums_P = torch.zeros(100, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    origin, goal = ranges([160, 0], [64, 32], [0, 2]), ranges([400, 16], [64, 32], [0, 2])
    copy_twin(target_W, source_W, torch.from_numpy(table(origin, goal)), sums_P)
    assert target_W[50:58].tolist() == list(range(20, 28))
    assert target_W[2:6].tolist() == list(range(4))
    assert target_W.count_nonzero() == 11
    again_P = torch.zeros(1, dtype=torch.int64)
    sums_twin(target_W, torch.from_numpy(table(goal)), again_P)
    assert torch.equal(sums_P, again_P)


def test_gathered_and_scattered_pieces_are_what_they_were() -> None:
    source_W, staging_W, target_W = torch.arange(64), torch.zeros(64).long(), torch.zeros(64).long()
    scattered = ranges([256, 0, 128], [16, 64, 32], [0, 1, 3])
    for goal_W, origin_W, rows in (
        (staging_W, source_W, table(scattered, packed(scattered))),
        (target_W, staging_W, table(packed(scattered), scattered)),
    ):
        copy_twin(goal_W, origin_W, torch.from_numpy(rows), torch.zeros(2, dtype=torch.int64))
    assert staging_W[:14].tolist() == [32, 33, *range(8), 16, 17, 18, 19]
    expected_W = torch.where(torch.isin(source_W, staging_W[:14]), source_W, 0)
    assert torch.equal(target_W, expected_W)


@pytest.mark.parametrize("fault", ["flip", "flip two top bits", "swap", "zero a run", "shift"])
def test_faults_change_the_sum(fault: str) -> None:
    chance = random.Random(fault)
    for _ in range(200):
        words_W = torch.tensor([chance.getrandbits(63) for _ in range(64)])
        wrong_W = words_W.clone()
        one, other = chance.sample(range(64), 2)
        match fault:
            case "flip":
                wrong_W[one] ^= 1 << chance.randrange(63)
            case "flip two top bits":
                wrong_W[[one, other]] ^= -(1 << 63)
            case "swap":
                wrong_W[[one, other]] = words_W[[other, one]]
            case "zero a run":
                wrong_W[min(one, other) : max(one, other)] = 0
            case _:
                wrong_W = words_W.roll(1)
        assert summed(words_W) != summed(wrong_W)


def summed(words_W: torch.Tensor) -> int:
    return int(mix_twin(words_W, torch.arange(len(words_W))).sum())


@pytest.mark.parametrize("broken", [([8], [16]), ([16], [24])])
def test_ranges_that_are_not_whole_grains_are_refused(broken: tuple[list[int], list[int]]) -> None:
    offsets, sizes = broken
    with pytest.raises(ValueError, match=f"multiples of {GRAIN_BYTES}"):
        table(ranges(offsets, sizes, [0, 1]))
