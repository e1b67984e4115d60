"""The fetcher's state table."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pieces import pieces

from kvtransfer.messages import FetchId
from kvtransfer.plan import ascending
from kvtransfer.sink.fetch import (
    FETCH_STATES,
    MAX_CORRUPT,
    End,
    Fetch,
    FetchEvent,
    FetchStage,
    FetchStep,
    SendCancel,
    SendFetch,
    SendRelease,
)
from protocol.errors import CorruptBlock, TransferError
from protocol.ids import LeaseId

BLOCK_TOKENS, BLOCK_BYTES, NUM_TOKENS = 4, 64, 10
INDICES = (0, 2)
"""They go to the blocks of the same number and ten."""


def new_fetch(indices: tuple[int, ...] = INDICES) -> Fetch:
    return Fetch(fetch_id=FetchId(1), lease_id=LeaseId(2), pieces_S=described(*indices))


def described(*indices: int, **changes: int) -> NDArray[Any]:
    return pieces(
        indices, [10 + index for index in indices], block_tokens=BLOCK_TOKENS,
        num_tokens=NUM_TOKENS, block_bytes=BLOCK_BYTES, **changes,
    )  # fmt: skip


def begin(fetch: Fetch, *indices: int, attempt: int = 1, **changes: int) -> NDArray[np.intp] | None:
    return fetch.begin_write(attempt=attempt, pieces_P=described(*indices, **changes))


def write(fetch: Fetch, *indices: int, attempt: int = 1, broken: str = "") -> list[FetchStep]:
    """A writer that begins and ends; `broken` spoils all it wrote."""
    places_P = begin(fetch, *indices, attempt=attempt)
    assert places_P is not None
    right_P = np.full(len(places_P), not broken)
    return fetch.end_write(places_P, right_P=right_P, broken=broken)


def asked(steps: list[FetchStep]) -> tuple[int, list[int], list[int]]:
    """Attempt, indices and slots of the one thing asked for."""
    (step,) = steps
    assert isinstance(step, SendFetch)
    return step.attempt, step.indices.tolist(), step.slots.tolist()


def test_every_running_stage_has_a_row_to_every_end() -> None:
    for stage in (FetchStage.REQUESTED, FetchStage.RECEIVING):
        assert FETCH_STATES.rows[stage, FetchEvent.BROKE] is FetchStage.FAILED
        assert FETCH_STATES.rows[stage, FetchEvent.CANCELLED] is FetchStage.ABORTED


def test_no_row_leaves_an_end() -> None:
    assert not {stage for stage, _ in FETCH_STATES.rows} & {
        FetchStage.LANDED, FetchStage.FAILED, FetchStage.ABORTED,
    }  # fmt: skip


def test_a_fetch_lands_when_every_slot_is_verified_and_the_note_is_here() -> None:
    fetch = new_fetch()
    assert asked(fetch.start()) == (1, [0, 2], [10, 12])
    assert write(fetch, 2) == []
    assert fetch.note_arrived(attempt=1, note=b"n") == []
    assert write(fetch, 0) == [End(), SendRelease()]
    assert fetch.stage is FetchStage.LANDED and fetch.verified == (0, 2)


def test_the_note_alone_lands_a_fetch_without_slots() -> None:
    fetch = new_fetch(())
    fetch.start()
    assert fetch.note_arrived(attempt=1, note=b"") == [End(), SendRelease()]


def test_slots_in_any_order_are_put_into_the_lease_s_order() -> None:
    indices_S, slots_S = ascending([2, 0], [12, 10])
    assert (indices_S.tolist(), slots_S.tolist()) == ([0, 2], [10, 12])


@pytest.mark.parametrize(
    ("indices", "slots"), [((0, 0), (10, 11)), ((0, 1), (10, 10)), ((0, 1), (10,))]
)
def test_a_slot_or_an_index_named_twice_is_the_callers_mistake(
    indices: tuple[int, ...], slots: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"indices|block_ids"):
        ascending(indices, slots)


def test_a_broken_piece_is_asked_for_again_under_a_new_attempt() -> None:
    fetch = new_fetch()
    fetch.start()
    write(fetch, 0)
    assert asked(write(fetch, 2, broken="checksum")) == (2, [2], [12])
    assert begin(fetch, 2, attempt=1) is None
    assert fetch.note_arrived(attempt=1, note=b"old") == [] and fetch.note is None
    assert begin(fetch, 2, attempt=2) is not None


def test_of_a_chunk_only_the_broken_pieces_are_asked_for_again() -> None:
    fetch = new_fetch()
    fetch.start()
    places_P = begin(fetch, 0, 2)
    assert places_P is not None
    steps = fetch.end_write(places_P, right_P=np.array([True, False]), broken="checksum")
    assert asked(steps) == (2, [2], [12])
    assert fetch.verified == (0,)


def test_a_piece_that_stays_broken_fails_the_fetch() -> None:
    fetch = new_fetch()
    fetch.start()
    for attempt in range(1, MAX_CORRUPT):
        write(fetch, 0, attempt=attempt, broken="checksum")
    steps = write(fetch, 0, attempt=MAX_CORRUPT, broken="checksum")
    assert isinstance(steps[0], SendCancel) and steps[-1] == End()
    assert isinstance(fetch.error, CorruptBlock)


def test_a_new_stream_is_asked_for_what_the_last_one_left_open() -> None:
    fetch = new_fetch((0, 1, 2))
    fetch.start()
    write(fetch, 0)
    places_P = begin(fetch, 1)
    assert places_P is not None
    assert fetch.stop_write(places_P) == []
    assert asked(fetch.start()) == (2, [1, 2], [11, 12])
    assert begin(fetch, 1, attempt=1) is None


def test_a_stream_that_breaks_counts_as_no_corruption() -> None:
    fetch = new_fetch()
    for attempt in range(1, 3 * MAX_CORRUPT):
        fetch.start()
        places_P = begin(fetch, 0, attempt=attempt)
        assert places_P is not None
        fetch.stop_write(places_P)
    assert not fetch.is_over


def test_a_slot_being_written_or_already_verified_takes_no_second_writer() -> None:
    fetch = new_fetch()
    fetch.start()
    places_P = begin(fetch, 0)
    assert places_P is not None
    assert begin(fetch, 0) is None and begin(fetch, 0, 2) is None
    fetch.end_write(places_P, right_P=np.array([True]), broken="")
    assert begin(fetch, 0) is None
    assert fetch.num_writing == 0


def test_an_end_waits_until_the_last_writer_has_stopped() -> None:
    fetch = new_fetch()
    fetch.start()
    first, second = begin(fetch, 0), begin(fetch, 2)
    assert first is not None and second is not None
    assert fetch.cancel("client gone") == [SendCancel("client gone")]
    assert begin(fetch, 0) is None
    assert fetch.end_write(first, right_P=np.array([True]), broken="") == []
    assert fetch.stop_write(second) == [End()]
    assert fetch.stage is FetchStage.ABORTED


def test_an_end_does_not_wait_for_a_writer_that_cannot_be_stopped() -> None:
    fetch = new_fetch()
    fetch.start()
    places_P = begin(fetch, 2)
    assert places_P is not None
    fetch.cancel("client gone")
    assert fetch.abandon() == [End()]
    assert fetch.slots_S[fetch.writing_S].tolist() == [12]
    assert fetch.abandon() == fetch.stop_write(places_P) == []
    assert fetch.num_writing == 0


def test_nothing_happens_after_an_end() -> None:
    fetch = new_fetch()
    fetch.start()
    fetch.fail(TransferError("late"))
    assert fetch.cancel("x") == fetch.fail(TransferError("y")) == fetch.start() == []
    assert fetch.note_arrived(attempt=1, note=b"") == []
    assert str(fetch.error) == "late"


@pytest.mark.parametrize(
    "changes", [{"token_start": 0}, {"token_count": 3}, {"num_bytes": 63}, {"slot": 11}]
)
def test_a_piece_described_otherwise_than_its_lease_is_refused(changes: dict[str, int]) -> None:
    fetch = new_fetch()
    fetch.start()
    with pytest.raises(TransferError, match="described as"):
        begin(fetch, 2, **changes)
    assert fetch.num_writing == 0


@pytest.mark.parametrize("indices", [(1,), (0, 1), (3,), (2, 0), (2, 2), (1 << 30,)])
def test_pieces_nobody_asked_for_or_out_of_order_are_refused(indices: tuple[int, ...]) -> None:
    fetch = new_fetch()
    fetch.start()
    with pytest.raises(TransferError, match="describe"):
        begin(fetch, *indices, token_count=4)
    assert fetch.num_writing == 0


def test_a_fetch_without_slots_is_sent_no_piece() -> None:
    fetch = new_fetch(())
    fetch.start()
    with pytest.raises(TransferError, match="nobody asked for"):
        begin(fetch, 0)
