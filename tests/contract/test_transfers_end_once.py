"""A failure, an abort or a storm: every fetch and every lease ends, once, and gives all back."""

import threading
from contextlib import closing

import pytest
from support.eventually import eventually
from support.fetching import TimedEnds, fetch
from support.outcomes import ended, error_of
from support.transfer import LAYOUT, WITHIN_S, Borrower, Lender

from kvtransfer.endings import Aborted, Landed, Lost
from protocol.errors import LeaseExpired
from protocol.messages import Ticket


def test_an_exception_while_bytes_come_reaches_the_owner(transport: str, lender: Lender) -> None:
    """Every fetch is ended and the worker is told that its sink is of no use any more."""
    told: list[str] = []

    def fail(slot: memoryview) -> None:
        raise RuntimeError("the driver says no")

    borrower = Borrower(transports=(transport,), tamper=fail, on_broken=told.append)
    tickets = [lender.lend(range(2)), lender.lend(range(2, 4))]
    outcomes = [
        fetch(borrower, ticket, range(2 * i, 2 * i + 2)) for i, ticket in enumerate(tickets)
    ]
    for ticket in tickets:
        lender.write_all(ticket)
    assert all(isinstance(outcome.end, Aborted) for outcome in outcomes)
    eventually(lambda: told == ["the kv sink is broken: the driver says no"])
    borrower.close()


def test_a_source_that_cannot_go_on_tells_its_fetcher_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4), deadline_s=300.0)
    lender.source.publish(ticket.lease, ticket.num_tokens // 2)
    lender.source.fail(ticket.lease, "the forward raised")
    assert "the forward raised" in str(error_of(outcome))
    assert ended(ends, ticket) == "failed"


def test_a_push_that_fails_half_way_is_signalled_not_waited_for(
    lender: Lender, borrower: Borrower
) -> None:
    """The failure is found while sending: a block's generation is no longer the lease's."""
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4), deadline_s=300.0)
    lender.source.publish(ticket.lease, LAYOUT.block_tokens)
    eventually(lambda: borrower.memory.block(0) == lender.memory.block(0))
    lender.memory.generations[3] += 1
    lender.source.publish(ticket.lease, ticket.num_tokens)
    assert "another request" in str(error_of(outcome))


def test_a_request_rejected_on_decode_frees_its_blocks_on_prefill_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    lender.write_all(ticket)
    borrower.sink.drop(ticket, reason="the pool is full")
    assert ended(ends, ticket) == "released"
    assert ends.told[ticket.lease].detail == "the pool is full"


def test_a_lease_is_renewed_on_a_pushing_stream_too(transport: str) -> None:
    """Renewals are control messages of the sink's thread, whoever moves the bytes."""
    with (
        closing(Lender(lease_ttl_s=0.5)) as lender,
        closing(Borrower(transports=(transport,), lease_ttl_s=0.5)) as borrower,
    ):
        ticket = lender.lend(range(4))
        outcome = fetch(borrower, ticket, range(4))
        lender.source.publish(ticket.lease, LAYOUT.block_tokens)
        for _ in range(3):  # three terms of a lease nobody renews
            assert lender.end_of(lender.lend([9]).lease).reason == "expired"
        lender.source.finish(ticket.lease, b"")
        assert isinstance(outcome.end, Landed)


def test_blocks_are_held_by_a_short_lease_from_the_queue_on(transport: str) -> None:
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


def test_an_abort_after_the_prefill_has_finished_frees_at_once(
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


def test_both_sides_aborting_at_once_end_once_each(
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


def test_a_storm_of_fetches_on_one_link_ends_and_leaks_nothing(
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


@pytest.mark.parametrize("written", [0, 2, 4])
def test_an_abort_at_any_stage_returns_everything(
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


def test_a_retracted_request_cannot_be_taken_for_one_that_succeeded(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    """A lease ends once, for good; a second fetch of it is told so and does not wait."""
    ticket = lender.lend(range(4))
    lender.write_all(ticket)
    assert isinstance(fetch(borrower, ticket, range(4)).end, Landed)
    assert ended(ends, ticket) == "released"
    again = fetch(borrower, ticket, range(4), deadline_s=300.0)
    assert isinstance(error_of(again), LeaseExpired)
