"""Sources and sinks that start, stop, hang or stay idle cost at most the fetches of their link."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec
from support.eventually import eventually
from support.fetching import TimedEnds, fetch
from support.middle import Middle, NoHarm
from support.outcomes import ended, error_of, lands, same_bytes
from support.transfer import LAYOUT, WITHIN_S, Borrower, Lender

from kvtransfer.endings import Aborted, Landed
from protocol.errors import PeerLost


def test_a_link_that_breaks_is_made_again_by_the_next_fetch(
    lender: Lender, borrower: Borrower
) -> None:
    assert lands(lender, borrower)
    for _ in range(5):
        with closing(Lender()) as restarted:
            assert lands(restarted, borrower, range(50, 54))
        assert lands(lender, borrower)


def test_a_stream_that_dies_in_the_middle_is_made_again_and_the_fetch_lands(
    lender: Lender, borrower: Borrower
) -> None:
    with closing(Middle(NoHarm())) as middle:
        ticket = middle.lead(lender.lend(range(8)))
        outcome = fetch(borrower, ticket, range(8))
        lender.source.publish(ticket.lease, ticket.num_tokens // 2)
        eventually(lambda: same_bytes(lender, borrower, range(4)))
        middle.break_streams()
        lender.write_all(ticket)
        assert isinstance(outcome.end, Landed)
        assert same_bytes(lender, borrower, range(8))


def test_sources_that_come_and_go_while_others_are_fetched_from(
    lender: Lender, borrower: Borrower
) -> None:
    """A link belongs to one incarnation: there is no agent to remove and add again."""

    def come_and_go(number: int) -> bool:
        with closing(Lender()) as passing:
            return lands(passing, borrower, range(4 * number, 4 * number + 4))

    with ThreadPoolExecutor(4) as pool:
        passing = pool.map(come_and_go, [0, 1, 2, 3] * 5)
        assert all(lands(lender, borrower) for _ in range(20))
        assert all(passing)


def test_a_source_outlives_sinks_that_vanish_while_they_fetch(
    transport: str, lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    for _ in range(10):
        ticket = lender.lend(range(8))
        passing = Borrower(transports=(transport,))
        outcome = fetch(passing, ticket, range(8))
        lender.source.publish(ticket.lease, ticket.num_tokens // 2)
        eventually(lambda: any(passing.memory.blocks))  # noqa: B023
        passing.close()
        assert isinstance(outcome.end, Aborted)
        assert ended(ends, ticket) in ("released", "expired")
    assert lands(lender, borrower)


def test_two_workers_that_meet_each_other_at_the_same_moment_do_not_hang(
    transport: str,
) -> None:
    """Whoever fetches dials; nobody waits for the other's greeting."""
    for _ in range(5):
        start = threading.Barrier(2)
        with closing(Lender()) as left, closing(Lender()) as right:

            def meet(other: Lender, start: threading.Barrier = start) -> bool:
                with closing(Borrower(transports=(transport,))) as borrower:
                    start.wait(WITHIN_S)
                    return lands(other, borrower)

            with ThreadPoolExecutor(2) as pool:
                assert all(pool.map(meet, [right, left]))


def test_a_ticket_from_before_the_restart_is_refused_by_name(
    lender: Lender, borrower: Borrower
) -> None:
    """Every ticket, greeting and stream carries the incarnation it is for."""
    assert lands(lender, borrower)
    old = msgspec.structs.replace(lender.lend(range(4)), epoch=12)
    assert "restarted" in str(error_of(fetch(borrower, old, range(4))))
    assert untouched_since_landing(borrower) and lands(lender, borrower)


def untouched_since_landing(borrower: Borrower) -> bool:
    return not any(borrower.memory.blocks[: 40 * LAYOUT.block_bytes])


def test_a_peer_that_never_answers_the_greeting_is_given_up(
    lender: Lender, borrower: Borrower
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        ticket = msgspec.structs.replace(lender.lend(range(4)), address=address)
        error = error_of(fetch(borrower, ticket, range(4), deadline_s=60.0))
        assert isinstance(error, PeerLost)
    assert lands(lender, borrower)


def test_the_first_fetch_after_an_idle_connection_died_lands(
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
