"""The source's state table."""

import pytest

from kvtransfer.messages import FetchId
from kvtransfer.plan import NO_BLOCK
from kvtransfer.source.lease import LEASE_STATES, LeaseEvent, LeaseStage, Lending, Refusal
from protocol.ids import LeaseId
from protocol.state_table import IllegalTransition

BLOCK_TOKENS = 4


def new_lending(*, num_tokens: int = 10) -> Lending:
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    return Lending(
        lease=LeaseId(2), block_ids=range(50, 50 + num_blocks), generations=[3] * num_blocks,
        num_tokens=num_tokens, block_tokens=BLOCK_TOKENS,
    )  # fmt: skip


def fetch_it(
    lending: Lending, *indices: int, attempt: int = 1, fetch: int = 1,
    block_tokens: int = BLOCK_TOKENS,
) -> bool:  # fmt: skip
    return lending.fetched(
        fetch=FetchId(fetch), attempt=attempt, indices=indices,
        slots=[20 + index for index in indices], block_tokens=block_tokens,
    )  # fmt: skip


def ready(lending: Lending, limit: int = 9) -> list[int]:
    indices, slots = lending.wanted
    taken = lending.take_ready(limit)
    assert slots[taken].tolist() == [20 + index for index in indices[taken].tolist()]
    return [int(index) for index in indices[taken]]


def test_every_running_stage_has_a_row_to_every_end_and_no_row_leaves_one() -> None:
    for running in (LeaseStage.LEASED, LeaseStage.SENDING):
        assert LEASE_STATES.rows[running, LeaseEvent.RELEASED] is LeaseStage.RELEASED
        assert LEASE_STATES.rows[running, LeaseEvent.LAPSED] is LeaseStage.EXPIRED
    assert not {stage for stage, _ in LEASE_STATES.rows} & {LeaseStage.RELEASED, LeaseStage.EXPIRED}


def test_a_source_offers_pieces_as_they_are_written_each_once() -> None:
    lending = new_lending()
    fetch_it(lending, 0, 1, 2)
    assert ready(lending) == [] and lending.num_ready == 0
    lending.publish(7)
    assert ready(lending) == [0]
    lending.publish(9)
    assert ready(lending) == [1] and ready(lending) == []
    lending.publish(10)  # the last block is partly filled, and now final
    assert lending.num_ready == 1 and ready(lending) == [2]


def test_pieces_larger_than_the_sources_blocks_wait_for_all_of_them() -> None:
    lending = new_lending()
    fetch_it(lending, 0, 1, block_tokens=8)
    lending.publish(7)
    assert ready(lending) == []
    lending.publish(8)
    assert ready(lending) == [0]
    lending.finish(b"")
    assert ready(lending) == [1]


def test_slots_of_all_groups_are_ready_when_their_tokens_are_written() -> None:
    lending = Lending(
        lease=LeaseId(2), block_ids=[50, NO_BLOCK, 51, NO_BLOCK, 52, 53], num_tokens=10,
        generations=[3, 0, 3, 0, 3, 3], block_tokens=BLOCK_TOKENS, num_groups=2,
    )  # fmt: skip
    fetch_it(lending, 0, 2, 4, 5)
    lending.publish(8)
    assert ready(lending) == [0, 2]
    lending.publish(10)
    assert ready(lending) == [4, 5]
    with pytest.raises(Refusal, match="block 6 of a lease of 6"):
        fetch_it(lending, 6, attempt=2)


def test_what_is_written_stays_written() -> None:
    lending = new_lending()
    lending.publish(8)
    lending.publish(4)
    assert lending.num_written == 8


def test_no_more_is_taken_than_asked_for_at_a_time() -> None:
    lending = new_lending()
    fetch_it(lending, 0, 1, 2)
    lending.finish(b"")
    assert [ready(lending, 2), ready(lending, 2)] == [[0, 1], [2]]
    assert lending.num_sent == 3


def test_a_new_attempt_is_offered_its_pieces_and_the_note_again() -> None:
    lending = new_lending()
    lending.finish(b"n")
    fetch_it(lending, 0, 1)
    assert lending.take_note() is None  # not before everything asked for was offered
    assert (ready(lending), lending.take_note()) == ([0, 1], b"n")
    assert lending.take_note() is None
    assert fetch_it(lending, 1, attempt=2)
    assert (ready(lending), lending.take_note()) == ([1], b"n")
    assert not fetch_it(lending, 0, attempt=1)
    assert ready(lending) == []


@pytest.mark.parametrize(
    ("fetch", "indices", "why"),
    [(2, (0,), "another fetch"), (1, (3,), "block 3 of a lease of 3"), (1, (0, 0), "twice")],
)
def test_a_fetch_that_does_not_fit_the_lease_is_refused(
    fetch: int, indices: tuple[int, ...], why: str
) -> None:
    lending = new_lending()
    fetch_it(lending, 0)
    with pytest.raises(Refusal, match=why):
        fetch_it(lending, *indices, attempt=2, fetch=fetch)
    assert lending.stage is LeaseStage.SENDING


def test_an_ended_lease_serves_nobody() -> None:
    lending = new_lending()
    lending.finish(b"n")
    lending.lapse()
    with pytest.raises(Refusal, match="expired"):
        fetch_it(lending)
    assert lending.num_ready == 0 and lending.take_note() is None


def test_a_missing_row_is_reported_with_the_story() -> None:
    lending = new_lending()
    lending.release()
    with pytest.raises(IllegalTransition, match=r"lease 2: lapsed .* \[released->released\]"):
        lending.lapse()
