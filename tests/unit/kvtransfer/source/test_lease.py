"""The source's state table."""

import pytest

from kvtransfer.messages import FetchId
from kvtransfer.plan import NO_BLOCK
from kvtransfer.source.lease import LEASE_STATES, FetchRefused, Lease, LeaseEvent, LeaseStage
from protocol.ids import LeaseId
from protocol.state_table import IllegalTransition

BLOCK_TOKENS = 4


def new_lease(*, num_tokens: int = 10) -> Lease:
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    return Lease(
        lease_id=LeaseId(2), block_ids=range(50, 50 + num_blocks), generations=[3] * num_blocks,
        num_tokens=num_tokens, block_tokens=BLOCK_TOKENS,
    )  # fmt: skip


def fetch_it(
    lease: Lease, *indices: int, attempt: int = 1, fetch: int = 1,
    block_tokens: int = BLOCK_TOKENS,
) -> bool:  # fmt: skip
    return lease.accept_fetch(
        fetch_id=FetchId(fetch), attempt=attempt, indices=indices,
        slots=[20 + index for index in indices], block_tokens=block_tokens,
    )  # fmt: skip


def ready(lease: Lease, limit: int = 9) -> list[int]:
    indices, slots = lease.wanted
    taken = lease.take_ready(limit)
    assert slots[taken].tolist() == [20 + index for index in indices[taken].tolist()]
    return [int(index) for index in indices[taken]]


def test_every_running_stage_has_a_row_to_every_end_and_no_row_leaves_one() -> None:
    for running in (LeaseStage.LEASED, LeaseStage.SENDING):
        assert LEASE_STATES.rows[running, LeaseEvent.RELEASED] is LeaseStage.RELEASED
        assert LEASE_STATES.rows[running, LeaseEvent.LAPSED] is LeaseStage.EXPIRED
    assert not {stage for stage, _ in LEASE_STATES.rows} & {LeaseStage.RELEASED, LeaseStage.EXPIRED}


def test_a_source_offers_pieces_as_they_are_written_each_once() -> None:
    lease = new_lease()
    fetch_it(lease, 0, 1, 2)
    assert ready(lease) == [] and lease.num_ready == 0
    lease.publish(7)
    assert ready(lease) == [0]
    lease.publish(9)
    assert ready(lease) == [1] and ready(lease) == []
    lease.publish(10)  # the last block is partly filled, and now final
    assert lease.num_ready == 1 and ready(lease) == [2]


def test_pieces_larger_than_the_sources_blocks_wait_for_all_of_them() -> None:
    lease = new_lease()
    fetch_it(lease, 0, 1, block_tokens=8)
    lease.publish(7)
    assert ready(lease) == []
    lease.publish(8)
    assert ready(lease) == [0]
    lease.finish(b"")
    assert ready(lease) == [1]


def test_slots_of_all_groups_are_ready_when_their_tokens_are_written() -> None:
    lease = Lease(
        lease_id=LeaseId(2), block_ids=[50, NO_BLOCK, 51, NO_BLOCK, 52, 53], num_tokens=10,
        generations=[3, 0, 3, 0, 3, 3], block_tokens=BLOCK_TOKENS, num_groups=2,
    )  # fmt: skip
    fetch_it(lease, 0, 2, 4, 5)
    lease.publish(8)
    assert ready(lease) == [0, 2]
    lease.publish(10)
    assert ready(lease) == [4, 5]
    with pytest.raises(FetchRefused, match="block 6 of a lease of 6"):
        fetch_it(lease, 6, attempt=2)


def test_what_is_written_stays_written() -> None:
    lease = new_lease()
    lease.publish(8)
    lease.publish(4)
    assert lease.num_written == 8


def test_no_more_is_taken_than_asked_for_at_a_time() -> None:
    lease = new_lease()
    fetch_it(lease, 0, 1, 2)
    lease.finish(b"")
    assert [ready(lease, 2), ready(lease, 2)] == [[0, 1], [2]]
    assert lease.num_sent == 3


def test_a_new_attempt_is_offered_its_pieces_and_the_note_again() -> None:
    lease = new_lease()
    lease.finish(b"n")
    fetch_it(lease, 0, 1)
    assert lease.take_note() is None  # not before everything asked for was offered
    assert (ready(lease), lease.take_note()) == ([0, 1], b"n")
    assert lease.take_note() is None
    assert fetch_it(lease, 1, attempt=2)
    assert (ready(lease), lease.take_note()) == ([1], b"n")
    assert not fetch_it(lease, 0, attempt=1)
    assert ready(lease) == []


@pytest.mark.parametrize(
    ("fetch", "indices", "why"),
    [(2, (0,), "another fetch"), (1, (3,), "block 3 of a lease of 3"), (1, (0, 0), "twice")],
)
def test_a_fetch_that_does_not_fit_the_lease_is_refused(
    fetch: int, indices: tuple[int, ...], why: str
) -> None:
    lease = new_lease()
    fetch_it(lease, 0)
    with pytest.raises(FetchRefused, match=why):
        fetch_it(lease, *indices, attempt=2, fetch=fetch)
    assert lease.stage is LeaseStage.SENDING


def test_an_ended_lease_serves_nobody() -> None:
    lease = new_lease()
    lease.finish(b"n")
    lease.lapse()
    with pytest.raises(FetchRefused, match="expired"):
        fetch_it(lease)
    assert lease.num_ready == 0 and lease.take_note() is None


def test_a_missing_row_is_reported_with_the_story() -> None:
    lease = new_lease()
    lease.release()
    with pytest.raises(IllegalTransition, match=r"lease 2: lapsed .* \[released->released\]"):
        lease.lapse()
