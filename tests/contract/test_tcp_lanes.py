"""Faults of a TCP stream's connections, between a real source and a real sink."""

import socket
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import msgspec
import pytest
from support.eventually import eventually
from support.transfer import LAYOUT, Borrower, Lender, Slot

from kvtransfer.endings import Landed
from kvtransfer.sink.events import Rejected
from kvtransfer.transports.tcp.sink import TcpSinkStream

LANES = 3


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender(transports=("tcp",))
    yield lender
    lender.close()


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    borrower = Borrower(transports=("tcp",), tcp_lanes=LANES)
    yield borrower
    borrower.close()


def stream_of(borrower: Borrower) -> TcpSinkStream:
    """The sink's stream, once all its lanes are up."""

    def up() -> TcpSinkStream | None:
        for link in list(borrower.sink._fetches._links.values()):
            stream = link.stream
            if isinstance(stream, TcpSinkStream) and len(stream._lanes) == LANES:
                return stream
        return None

    stream = eventually(up)
    assert stream is not None
    return stream


@pytest.mark.parametrize("dead", range(LANES))
def test_a_fetch_goes_on_over_a_new_stream_with_what_had_not_landed(
    lender: Lender, borrower: Borrower, dead: int
) -> None:
    """One lane dies: the stream is dialled again, and only the missing blocks are asked for."""
    ticket = lender.lend(range(20))
    outcome = borrower.fetch(ticket, [Slot(i, 40 - i) for i in range(20)])
    lender.source.publish(ticket.lease, 12 * lender.layout.block_tokens)
    first = stream_of(borrower)
    eventually(lambda: borrower.memory.block(29) == lender.memory.block(11))
    eventually(lambda: not next(iter(borrower.sink._fetches._running.values())).fetch.num_writing)
    first._lanes[dead].sock.shutdown(socket.SHUT_RDWR)
    eventually(lambda: stream_of(borrower) is not first)
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed), outcome.end
    assert "tcp broke" in outcome.end.transport_why
    assert all(borrower.memory.block(40 - i) == lender.memory.block(i) for i in range(20))
    assert lender.end_of(ticket.lease).num_blocks == 20


def test_a_closed_stream_leaves_nothing_to_wake_the_sink(
    lender: Lender, borrower: Borrower
) -> None:
    """A lane still watched after its end would keep a core busy."""
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed)
    stream = stream_of(borrower)
    watched = {sock for sock, _ in borrower.sink._poller._poller.sockets}
    assert stream.fileno() in watched
    assert not watched & {lane.fileno() for lane in stream._lanes}


def test_within_one_host_a_stream_has_one_lane_unless_told(lender: Lender) -> None:
    borrower = Borrower(transports=("tcp",))
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed)
    (link,) = borrower.sink._fetches._links.values()
    assert isinstance(link.stream, TcpSinkStream)
    assert len(link.stream._lanes) == 1 and not link.stream._dials
    borrower.close()


def test_of_many_blocks_on_their_way_one_broken_one_is_asked_for_again_and_no_other() -> None:
    large = msgspec.structs.replace(LAYOUT, head_dim=2048, block_tokens=32)
    num_blocks, seen = 96, count()

    def spoil_first(slot: memoryview) -> None:
        slot[0] ^= next(seen) == 0

    lender = Lender(transports=("tcp",), layout=large, num_blocks=num_blocks)
    borrower = Borrower(
        transports=("tcp",), tcp_lanes=4, layout=large, num_blocks=num_blocks, tamper=spoil_first
    )
    with closing(lender), closing(borrower):
        ticket = lender.lend(range(num_blocks))
        lender.write_all(ticket)
        outcome = borrower.fetch(ticket, [Slot(i, i) for i in range(num_blocks)])
        assert isinstance(outcome.end, Landed), outcome.end
        rejected = [x.num_blocks for x in borrower.events if isinstance(x, Rejected)]
        assert rejected == [1]
        assert bytes(borrower.memory.blocks) == bytes(lender.memory.blocks)
