import numpy as np
import pytest

from kvtransfer.plan import Ranges
from kvtransfer.transports.ucx.cut import cut_ranges, joint_runs, runs_of
from protocol.errors import WireError


def ranges(offsets: list[int], sizes: list[int]) -> Ranges:
    starts = list(range(len(offsets) + 1))
    return Ranges(np.array(offsets), np.array(sizes), np.array(starts))


def packed(*runs: int) -> bytes:
    return np.array(runs, "<u4").tobytes()


def test_neighbours_on_both_sides_travel_in_one_message() -> None:
    source = ranges([0, 10, 20, 30, 90], [10, 10, 10, 10, 10])
    target = ranges([50, 60, 0, 10, 20], [10, 10, 10, 10, 10])
    runs_M = joint_runs(source, target)
    assert runs_M.tolist() == [2, 2, 1]
    sent, received = cut_ranges(7, source, runs_M), cut_ranges(7, target, runs_M)
    assert (sent.offsets_M.tolist(), sent.sizes_M.tolist()) == ([0, 20, 90], [20, 20, 10])
    assert (received.offsets_M.tolist(), received.sizes_M.tolist()) == ([50, 0, 20], [20, 20, 10])
    assert sent.emptied().sizes_M.tolist() == [0, 0, 0]


def test_a_whole_chunk_may_be_one_message() -> None:
    source, target = ranges([40, 50], [10, 5]), ranges([0, 10], [10, 5])
    assert joint_runs(source, target).tolist() == [2]


def test_a_source_takes_runs_that_are_adjacent_in_its_pool() -> None:
    source = ranges([0, 10, 20], [10, 10, 10])
    for runs in ([3], [1, 2], [1, 1, 1]):
        assert runs_of(packed(*runs), source).tolist() == runs


@pytest.mark.parametrize(
    "runs", [b"", b"\1", packed(2), packed(4), packed(3, 0), packed(2, 2), packed(0xFFFF_FFFF)]
)
def test_runs_that_are_not_the_chunks_are_refused(runs: bytes) -> None:
    with pytest.raises(WireError):
        runs_of(runs, ranges([0, 10, 20], [10, 10, 10]))


def test_a_message_across_a_gap_is_refused() -> None:
    with pytest.raises(WireError, match="not adjacent"):
        runs_of(packed(1, 2), ranges([0, 10, 30], [10, 10, 10]))
