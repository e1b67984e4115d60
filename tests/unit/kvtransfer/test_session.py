import pytest

from kvtransfer.messages import Descriptor, FetchId, Slot
from kvtransfer.session import (
    FETCH_TABLE,
    LEASE_TABLE,
    MAX_ATTEMPTS,
    End,
    Fetch,
    FetchEvent,
    FetchStage,
    LeaseEvent,
    LeaseStage,
    Lending,
    Refusal,
    SendCancel,
    SendFetch,
    SendRelease,
)
from protocol.errors import CorruptBlock, TransferError
from protocol.ids import LeaseId

SLOTS = (Slot(0, 10), Slot(2, 12))


def new_fetch(slots: tuple[Slot, ...] = SLOTS, *, num_tokens: int = 10) -> Fetch:
    return Fetch(
        fetch=FetchId(1), lease=LeaseId(2), slots=slots, num_tokens=num_tokens, block_tokens=4,
        block_bytes=64,
    )  # fmt: skip


def new_lending(*, num_tokens: int = 10) -> Lending:
    num_blocks = -(-num_tokens // 4)
    return Lending(
        lease=LeaseId(2), block_ids=range(50, 50 + num_blocks), generations=[3] * num_blocks,
        num_tokens=num_tokens, block_tokens=4, block_bytes=64,
    )  # fmt: skip


def block(index: int, **changes: int) -> Descriptor:
    described = new_lending().describe(index, 99)
    fields = {name: getattr(described, name) for name in described.__struct_fields__}
    return Descriptor(**{**fields, **changes})


def test_every_running_stage_has_a_row_to_every_end() -> None:
    for stage in (FetchStage.REQUESTED, FetchStage.RECEIVING):
        assert FETCH_TABLE[stage, FetchEvent.BROKE] is FetchStage.FAILED
        assert FETCH_TABLE[stage, FetchEvent.CANCELLED] is FetchStage.ABORTED
    for running in (LeaseStage.LEASED, LeaseStage.SENDING):
        assert LEASE_TABLE[running, LeaseEvent.RELEASED] is LeaseStage.RELEASED
        assert LEASE_TABLE[running, LeaseEvent.LAPSED] is LeaseStage.EXPIRED


def test_no_row_leaves_an_end() -> None:
    assert not {stage for stage, _ in FETCH_TABLE} & {
        FetchStage.LANDED, FetchStage.FAILED, FetchStage.ABORTED,
    }  # fmt: skip
    assert not {stage for stage, _ in LEASE_TABLE} & {LeaseStage.RELEASED, LeaseStage.EXPIRED}


def test_a_fetch_lands_when_every_slot_is_verified_and_the_note_is_here() -> None:
    fetch = new_fetch()
    assert fetch.start() == [SendFetch(attempt=1, slots=SLOTS)]
    assert fetch.begin_write(attempt=1, block=block(2)) == 12
    assert fetch.end_write(2) == []
    assert fetch.note_arrived(attempt=1, note=b"n") == []
    assert fetch.begin_write(attempt=1, block=block(0)) == 10
    assert fetch.end_write(0) == [SendRelease(), End()]
    assert fetch.stage is FetchStage.LANDED


def test_the_note_alone_lands_a_fetch_without_slots() -> None:
    fetch = new_fetch(())
    fetch.start()
    assert fetch.note_arrived(attempt=1, note=b"") == [SendRelease(), End()]


def test_a_broken_block_is_asked_for_again_under_a_new_attempt() -> None:
    fetch = new_fetch()
    fetch.start()
    fetch.begin_write(attempt=1, block=block(0))
    fetch.end_write(0)
    fetch.begin_write(attempt=1, block=block(2))
    assert fetch.end_write(2, broken="checksum") == [SendFetch(attempt=2, slots=(SLOTS[1],))]
    assert fetch.begin_write(attempt=1, block=block(2)) is None
    assert fetch.note_arrived(attempt=1, note=b"old") == [] and fetch.note is None
    assert fetch.begin_write(attempt=2, block=block(2)) == 12


def test_a_block_that_stays_broken_fails_the_fetch() -> None:
    fetch = new_fetch()
    fetch.start()
    for attempt in range(1, MAX_ATTEMPTS):
        fetch.begin_write(attempt=attempt, block=block(0))
        fetch.end_write(0, broken="checksum")
    fetch.begin_write(attempt=MAX_ATTEMPTS, block=block(0))
    steps = fetch.end_write(0, broken="checksum")
    assert isinstance(steps[0], SendCancel) and steps[-1] == End()
    assert isinstance(fetch.error, CorruptBlock)


def test_a_slot_being_written_or_already_verified_takes_no_second_writer() -> None:
    fetch = new_fetch()
    fetch.start()
    assert fetch.begin_write(attempt=1, block=block(0)) == 10
    assert fetch.begin_write(attempt=1, block=block(0)) is None
    fetch.end_write(0)
    assert fetch.begin_write(attempt=1, block=block(0)) is None
    assert fetch.begin_write(attempt=1, block=block(1)) is None  # never asked for


def test_an_end_waits_until_the_last_writer_has_stopped() -> None:
    fetch = new_fetch()
    fetch.start()
    fetch.begin_write(attempt=1, block=block(0))
    fetch.begin_write(attempt=1, block=block(2))
    assert fetch.cancel("client gone") == [SendCancel("client gone")]
    assert fetch.begin_write(attempt=1, block=block(0)) is None
    assert fetch.end_write(0) == []
    assert fetch.end_write(2, broken="cut") == [End()]
    assert fetch.stage is FetchStage.ABORTED


def test_nothing_happens_after_an_end() -> None:
    fetch = new_fetch()
    fetch.start()
    fetch.fail(TransferError("late"))
    assert fetch.cancel("x") == fetch.fail(TransferError("y")) == fetch.start() == []
    assert fetch.note_arrived(attempt=1, note=b"") == []
    assert str(fetch.error) == "late"


@pytest.mark.parametrize("changes", [{"token_start": 0}, {"token_count": 3}, {"num_bytes": 63}])
def test_a_block_described_otherwise_than_its_lease_is_refused(changes: dict[str, int]) -> None:
    fetch = new_fetch()
    fetch.start()
    with pytest.raises(TransferError, match="the lease says"):
        fetch.begin_write(attempt=1, block=block(2, **changes))
    assert fetch.writing == []


def test_a_source_offers_blocks_as_they_are_written_each_once() -> None:
    lending = new_lending()
    lending.fetched(fetch=FetchId(1), attempt=1, slots=[Slot(0, 5), Slot(1, 6), Slot(2, 7)])
    assert lending.take_ready(9) == []
    lending.publish(7)
    assert lending.take_ready(9) == [0]
    lending.publish(9)
    assert lending.take_ready(9) == [1] and lending.take_ready(9) == []
    lending.publish(10)  # the last block is partly filled, and now final
    assert lending.take_ready(9) == [2]


def test_what_is_written_stays_written() -> None:
    lending = new_lending()
    lending.publish(8)
    lending.publish(4)
    assert lending.num_written == 8


def test_a_new_attempt_is_offered_its_blocks_and_note_again() -> None:
    lending = new_lending()
    lending.finish(b"n")
    lending.fetched(fetch=FetchId(1), attempt=1, slots=[Slot(0, 5), Slot(1, 6)])
    assert (lending.take_ready(9), lending.take_note()) == ([0, 1], b"n")
    assert lending.take_note() is None
    assert lending.fetched(fetch=FetchId(1), attempt=2, slots=[Slot(1, 6)])
    assert (lending.take_ready(9), lending.take_note()) == ([1], b"n")
    assert not lending.fetched(fetch=FetchId(1), attempt=1, slots=[Slot(0, 5)])
    assert lending.take_ready(9) == []


@pytest.mark.parametrize(
    ("fetch", "slots", "why"),
    [
        (FetchId(2), [Slot(0, 1)], "another fetch"),
        (FetchId(1), [Slot(3, 1)], "block 3 of a lease of 3"),
        (FetchId(1), [Slot(0, 1), Slot(0, 2)], "twice"),
    ],
)
def test_a_fetch_that_does_not_fit_the_lease_is_refused(
    fetch: FetchId, slots: list[Slot], why: str
) -> None:
    lending = new_lending()
    lending.fetched(fetch=FetchId(1), attempt=1, slots=[Slot(0, 1)])
    with pytest.raises(Refusal, match=why):
        lending.fetched(fetch=fetch, attempt=2, slots=slots)
    assert lending.stage is LeaseStage.SENDING


def test_an_ended_lease_serves_nobody() -> None:
    lending = new_lending()
    lending.finish(b"n")
    lending.lapse()
    with pytest.raises(Refusal, match="expired"):
        lending.fetched(fetch=FetchId(1), attempt=1, slots=[])
    assert not lending.has_ready and lending.take_note() is None


def test_a_missing_row_is_reported_with_the_history() -> None:
    lending = new_lending()
    lending.release()
    with pytest.raises(AssertionError, match="lease 2: no row"):
        lending.lapse()
