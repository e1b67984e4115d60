"""What a sink and a source say of transports, retries and refusals, for whoever counts it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from support.eventually import eventually
from support.transfer import Borrower, Lender, Outcome, Slot

from kvtransfer.endings import Landed, Lost
from kvtransfer.sink.events import AskedAgain, LinkRefused, LinkUp, Rejected
from protocol.errors import LayoutMismatch
from protocol.ids import WorkerId

SOURCE = WorkerId("prefill-0")


@contextmanager
def pair(serves: Sequence[str], borrower: Borrower) -> Iterator[Lender]:
    lender = Lender(transports=serves)
    yield lender
    borrower.close()
    lender.close()


def fetch(lender: Lender, borrower: Borrower, blocks: Sequence[int] = (3, 4)) -> Outcome:
    ticket = lender.lend(blocks)
    lender.write_all(ticket)
    return borrower.fetch(ticket, [Slot(index, index) for index in range(len(blocks))])


def test_the_first_choice_is_said_once_a_link() -> None:
    borrower = Borrower()
    with pair(("shm", "tcp"), borrower) as lender:
        for _ in range(3):
            assert isinstance(fetch(lender, borrower).end, Landed)
        assert borrower.events == [LinkUp(source=SOURCE, transport="shm", missed=())]


def test_a_slower_transport_is_never_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    borrower = Borrower(transports=("shm", "tcp"))
    with caplog.at_level(logging.WARNING), pair(("tcp",), borrower) as lender:
        for _ in range(3):
            end = fetch(lender, borrower).end
            assert isinstance(end, Landed)
            assert end.transport_why == "tcp reachable; not shm: the source does not serve shm"
        missed = (("shm", "the source does not serve shm"),)
        assert borrower.events == [LinkUp(source=SOURCE, transport="tcp", missed=missed)]
    warnings = [record for record in caplog.records if record.message == "transport chosen"]
    assert len(warnings) == 1


def test_a_fallback_that_is_not_allowed_ends_the_fetch_and_says_what_was_missed() -> None:
    borrower = Borrower(transports=("shm", "tcp"), allow_fallback=False)
    with pair(("tcp",), borrower) as lender:
        end = fetch(lender, borrower).end
        assert isinstance(end, Lost) and isinstance(end.error, LayoutMismatch)
        assert "no fallback allowed; not shm: the source does not serve shm" in str(end.error)
        missed = (("shm", "the source does not serve shm"),)
        assert borrower.events == [LinkRefused(source=SOURCE, missed=missed)]


@pytest.mark.parametrize("transport", ["memory", "shm", "tcp"])
def test_rejected_blocks_and_the_retry_are_said(transport: str) -> None:
    left = [1]

    def corrupt(slot: memoryview) -> None:
        if left[0]:
            left[0] -= 1
            slot[0] ^= 0xFF

    borrower = Borrower(transports=(transport,), tamper=corrupt)
    with pair((transport,), borrower) as lender:
        assert isinstance(fetch(lender, borrower).end, Landed)
        assert borrower.events[1:] == [
            Rejected(num_blocks=1, why="the checksum is another"),
            AskedAgain(source=SOURCE, attempt=2),
        ]


@pytest.mark.parametrize("transport", ["memory", "shm", "tcp"])
def test_a_fetch_says_when_its_first_bytes_were_there(transport: str) -> None:
    borrower = Borrower(transports=(transport,))
    with pair((transport,), borrower) as lender:
        ticket = lender.lend((3, 4))
        lender.source.publish(ticket.lease, lender.layout.block_tokens)
        outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
        eventually(lambda: lender.sent(ticket.lease) == 1)
        lender.write_all(ticket)
        end = outcome.end
        assert isinstance(end, Landed)
        assert 0 < end.first_s < end.fetch_s
        lease_end = lender.end_of(ticket.lease)
        assert (lease_end.peer, lease_end.transport) == ("decode-0", transport)


def test_the_end_of_a_lease_nobody_fetched_names_nobody() -> None:
    borrower = Borrower()
    with pair(("shm",), borrower) as lender:
        ticket = lender.lend((1,))
        lender.source.fail(ticket.lease, "not wanted")
        assert lender.end_of(ticket.lease).peer == ""
