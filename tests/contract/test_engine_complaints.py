"""What users of engines with separate prefill and decode reported, each made to happen to us.

Numbered as in docs/field-failures.md, which also names those that do not apply, and those that the
libraries' reports in test_field_complaints.py show already.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest
from support.complaints import ended, error_of, lands, untouched
from support.eventually import eventually
from support.fetching import TimedEnds, fetch
from support.middle import Middle, NoHarm
from support.transfer import LAYOUT, WITHIN_S, Borrower, Lender, fill

from kvtransfer.sink.sink import Aborted, Landed, Lost
from protocol.errors import LayoutMismatch, LeaseExpired, PeerLost
from protocol.messages import Ticket


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends() -> TimedEnds:
    return TimedEnds()


@pytest.fixture
def lender(ends: TimedEnds) -> Iterator[Lender]:
    with closing(Lender(ends=ends)) as lender:
        yield lender


@pytest.fixture
def borrower(transport: str) -> Iterator[Borrower]:
    with closing(Borrower(transports=(transport,), allow_fallback=False)) as borrower:
        yield borrower


def test_2_vllm_25897_blocks_are_held_by_a_short_lease_from_the_queue_on(transport: str) -> None:
    """And vllm#41383: seconds after the last heartbeat, not minutes after the prefill."""
    ends = TimedEnds()
    with (
        closing(Lender(lease_ttl_s=0.5, ends=ends)) as lender,
        closing(Borrower(transports=(transport,), lease_ttl_s=0.5)) as borrower,
    ):
        queued = lender.lend(range(4))
        borrower.sink.hold(queued)
        for _ in range(3):  # three terms of a lease nobody holds
            assert ended(ends, lender.lend([9])) == "expired"
        assert queued.lease not in ends.told
        borrower.sink.close()
        assert ended(ends, queued) == "expired"


def test_3_vllm_29906_an_abort_after_the_prefill_has_finished_frees_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    lender.write_all(ticket)
    borrower.sink.drop(ticket, reason="the client is gone")
    assert ended(ends, ticket) == "released"
    fetched = lender.lend(range(4, 8))
    outcome = fetch(borrower, fetched, range(4))
    borrower.sink.cancel(outcome.fetch, reason="the client is gone")
    assert outcome.end == Aborted("the client is gone")
    assert ended(ends, fetched) == "released"


def test_5_vllm_46283_both_sides_aborting_at_once_end_once_each(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    """And vllm#46289: neither side waits for the other's word."""
    for _ in range(20):
        start = threading.Barrier(2)
        ticket = lender.lend(range(4))
        outcome = fetch(borrower, ticket, range(4))

        def abort_at_prefill(start: threading.Barrier = start, ticket: Ticket = ticket) -> None:
            start.wait(WITHIN_S)
            lender.source.fail(ticket.lease, "the client is gone")

        prefill = threading.Thread(target=abort_at_prefill)
        prefill.start()
        start.wait(WITHIN_S)
        borrower.sink.cancel(outcome.fetch)
        prefill.join()
        assert isinstance(outcome.end, Aborted | Lost)
        assert ended(ends, ticket) in ("failed", "released")
    assert borrower.sink.num_fetches == 0 and not ends.twice
    assert lender.source.num_leases == 0


def test_6_vllm_32255_nothing_is_written_into_a_slot_once_its_fetch_has_ended(
    transport: str,
) -> None:
    """And sglang#24527, #27372, #35049, #38961: the next owner of the slot finds only its own
    bytes there, however much of the old transfer is still under way."""
    with (
        closing(Lender(num_blocks=4_000)) as lender,
        closing(Borrower(num_blocks=4_000, transports=(transport,))) as borrower,
    ):
        for _ in range(10):
            ticket = lender.lend(range(4_000))
            outcome = fetch(borrower, ticket, range(4_000))
            lender.write_all(ticket)
            eventually(lambda: any(borrower.memory.block(0)))
            borrower.sink.cancel(outcome.fetch)
            assert isinstance(outcome.end, Aborted | Landed)
            borrower.memory.blocks[:] = bytes(len(borrower.memory.blocks))
            assert lands(lender, borrower, range(4))  # comes after all of the old on its link
            assert not any(borrower.memory.blocks[4 * LAYOUT.block_bytes :])
            borrower.memory.blocks[:] = bytes(len(borrower.memory.blocks))


def test_7_sglang_23020_the_last_of_hundreds_of_transfers_is_as_right_as_the_first(
    lender: Lender, borrower: Borrower
) -> None:
    """The same few blocks are lent, filled and fetched over and over."""
    for round_ in range(150):
        for block in range(40, 44):
            lender.memory.generations[block] += 1
            fill(lender.memory, block, salt=round_)
        assert lands(lender, borrower)


def test_8_vllm_48633_a_partial_prefix_hit_fetches_exactly_the_blocks_it_lacks(
    lender: Lender, borrower: Borrower
) -> None:
    """Which block goes where is said for each, never told from the length of a list; the last,
    half-filled one too. And vllm#55470."""
    ticket = lender.lend([10, 11, 12, 13], num_tokens=14)
    lender.write_all(ticket)
    end = fetch(borrower, ticket, [33, 31], indices=[2, 3]).end
    assert isinstance(end, Landed) and end.num_blocks == 2
    assert borrower.memory.block(33) == lender.memory.block(12)
    assert borrower.memory.block(31) == lender.memory.block(13)
    assert sum(any(borrower.memory.block(block)) for block in range(64)) == 2


def test_9_vllm_49238_a_ticket_from_before_the_restart_is_refused_by_name(
    lender: Lender, borrower: Borrower
) -> None:
    """Every ticket, greeting and stream carries the incarnation it is for."""
    assert lands(lender, borrower)
    old = msgspec.structs.replace(lender.lend(range(4)), epoch=12)
    assert "restarted" in str(error_of(fetch(borrower, old, range(4))))
    assert untouched_since_landing(borrower) and lands(lender, borrower)


def untouched_since_landing(borrower: Borrower) -> bool:
    return not any(borrower.memory.blocks[: 40 * LAYOUT.block_bytes])


def test_10_vllm_26171_a_peer_that_never_answers_the_greeting_is_given_up(
    lender: Lender, borrower: Borrower
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        ticket = msgspec.structs.replace(lender.lend(range(4)), address=address)
        error = error_of(fetch(borrower, ticket, range(4), deadline_s=60.0))
        assert isinstance(error, PeerLost)
    assert lands(lender, borrower)


def test_12_vllm_34896_a_transfer_that_failed_is_never_reported_as_a_smaller_success(
    lender: Lender, borrower: Borrower
) -> None:
    """And vllm#32200, #49250: landed means every block asked for; anything else is an error that
    says whether another worker may do better."""
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4))
    lender.source.publish(ticket.lease, 3 * LAYOUT.block_tokens)
    eventually(lambda: borrower.memory.block(2) == lender.memory.block(2))
    lender.source.fail(ticket.lease, "preempted")
    assert error_of(outcome).retryable
    assert borrower.sink.transports_used == ()


def test_13_sglang_10110_a_storm_of_fetches_on_one_link_ends_and_leaks_nothing(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    """And sglang#11648, #10204, #9266."""
    tickets = [lender.lend([number % 64]) for number in range(500)]
    outcomes = [fetch(borrower, ticket, [number % 64]) for number, ticket in enumerate(tickets)]
    for ticket in tickets:
        lender.write_all(ticket)
    assert all(isinstance(outcome.end, Landed) for outcome in outcomes)
    eventually(lambda: lender.source.num_leases == 0)
    assert borrower.sink.num_fetches == 0 and len(ends.told) == 500


def test_14_sglang_9926_the_first_fetch_after_an_idle_connection_died_lands(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    """The end of an idle stream is seen while it is idle, and made good then or when needed."""
    with closing(Middle(NoHarm())) as middle:
        for round_ in range(3):
            blocks = range(8 * round_, 8 * round_ + 4)
            ticket = middle.lead(lender.lend(blocks))
            lender.write_all(ticket)
            assert isinstance(fetch(borrower, ticket, blocks).end, Landed)
            assert ended(ends, ticket) == "released"
            middle.break_streams()


@pytest.mark.parametrize("written", [0, 2, 4])
def test_15_sglang_9817_an_abort_at_any_stage_returns_everything(
    lender: Lender, borrower: Borrower, ends: TimedEnds, written: int
) -> None:
    """And sglang#21652, #18701: before anything is written, half way, and at the end."""
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4))
    lender.source.publish(ticket.lease, written * LAYOUT.block_tokens)
    borrower.sink.cancel(outcome.fetch)
    assert isinstance(outcome.end, Aborted)
    assert ended(ends, ticket) == "released"
    assert borrower.sink.num_fetches == lender.source.num_leases == 0


def test_16_sglang_6857_a_retracted_request_cannot_be_taken_for_one_that_succeeded(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    """A lease ends once, for good; a second fetch of it is told so and does not wait."""
    ticket = lender.lend(range(4))
    lender.write_all(ticket)
    assert isinstance(fetch(borrower, ticket, range(4)).end, Landed)
    assert ended(ends, ticket) == "released"
    again = fetch(borrower, ticket, range(4), deadline_s=300.0)
    assert isinstance(error_of(again), LeaseExpired)


def test_17_llmd_2433_an_impossible_pair_is_an_error_with_its_reason_not_a_hang(
    lender: Lender, borrower: Borrower
) -> None:
    """And vllm#37333, #42898, #42179."""
    ticket = lender.lend(range(4))
    foreign = msgspec.structs.replace(
        ticket, layout=msgspec.structs.replace(LAYOUT, dtype="bfloat16")
    )
    error = error_of(fetch(borrower, foreign, range(4), deadline_s=300.0))
    assert isinstance(error, LayoutMismatch) and not error.retryable and str(error)


def test_18_vllm_23587_another_model_is_refused_without_harm_to_either_server(
    transport: str, lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    with closing(Borrower(transports=(transport,), compat="another attention layout")) as other:
        ticket = lender.lend(range(4))
        lender.write_all(ticket)
        assert isinstance(error_of(fetch(other, ticket, range(4))), LayoutMismatch)
        assert untouched(other) and ended(ends, ticket) == "released"
    assert lands(lender, borrower)


@pytest.mark.parametrize(
    "wrong",
    [{"address": ""}, {"address": "tcp://nowhere:1"}, {"lease": 0}, {"epoch": 0}, {"compat": ""}],
)
def test_19_vllm_ascend_11882_wrong_transfer_parameters_lose_one_request_not_the_worker(
    lender: Lender, borrower: Borrower, wrong: dict[str, object]
) -> None:
    ticket = msgspec.structs.replace(lender.lend(range(4)), **wrong)
    assert str(error_of(fetch(borrower, ticket, range(4))))
    with pytest.raises(ValueError, match=r"index|indices"):
        fetch(borrower, ticket, [1], indices=[4])
    assert untouched(borrower) and lands(lender, borrower)
