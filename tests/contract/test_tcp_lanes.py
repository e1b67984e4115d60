"""Faults of a TCP stream's connections, between a real source and a real sink."""

import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from support.eventually import eventually
from support.transfer import LAYOUT, Borrower, Lender, Slot

from kvtransfer.chunk import Landing
from kvtransfer.endings import Landed
from kvtransfer.sink import sink
from kvtransfer.sink.events import Rejected
from kvtransfer.sink.receiver import Receiver
from kvtransfer.transports.control import ControlEnd, Poller
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


Streams = dict[TcpSinkStream, list[socket.socket]]


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Sinks' streams in the order in which they came up, and the lanes of each."""
    lanes: Streams = defaultdict(list)
    admit = TcpSinkStream.admit

    def noted(stream: TcpSinkStream, sock: socket.socket) -> None:
        admit(stream, sock)
        lanes[stream].append(sock)

    monkeypatch.setattr(TcpSinkStream, "admit", noted)
    return lanes


def newest(streams: Streams) -> TcpSinkStream:
    """The stream that came up last, once all its lanes are up."""

    def up() -> TcpSinkStream | None:
        last = next(reversed(streams), None)
        return last if last is not None and len(streams[last]) == LANES else None

    stream = eventually(up)
    assert stream is not None
    return stream


@pytest.fixture
def num_verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces of the chunks that have ended, chunk by chunk."""
    ended: list[int] = []
    end_chunk = Receiver.end_chunk

    def noted(
        receiver: Receiver, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        end_chunk(receiver, landing, sums_P, broken=broken)
        ended.append(len(landing.pieces_P))

    monkeypatch.setattr(Receiver, "end_chunk", noted)
    return ended


class NotedPoller(Poller):
    """Says which descriptors it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: set[int] = set()

    def watch(self, what: ControlEnd | int, *, writable: bool = False) -> None:
        super().watch(what, writable=writable)
        if isinstance(what, int):
            self.watched.add(what)

    def forget(self, what: ControlEnd | int) -> None:
        super().forget(what)
        if isinstance(what, int):
            self.watched.discard(what)


@pytest.mark.parametrize("dead", range(LANES))
def test_a_fetch_goes_on_over_a_new_stream_with_what_had_not_landed(
    streams: Streams, num_verified: list[int], lender: Lender, borrower: Borrower, dead: int
) -> None:
    """One lane dies: the stream is dialled again, and only the missing blocks are asked for."""
    ticket = lender.lend(range(20))
    outcome = borrower.fetch(ticket, [Slot(i, 40 - i) for i in range(20)])
    lender.source.publish(ticket.lease, 12 * lender.layout.block_tokens)
    first = newest(streams)
    eventually(lambda: borrower.memory.block(29) == lender.memory.block(11))
    eventually(lambda: sum(num_verified) == 12)
    streams[first][dead].shutdown(socket.SHUT_RDWR)
    eventually(lambda: newest(streams) is not first)
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed), outcome.end
    assert "tcp broke" in outcome.end.transport_why
    assert all(borrower.memory.block(40 - i) == lender.memory.block(i) for i in range(20))
    assert lender.end_of(ticket.lease).num_blocks == 20


def test_a_closed_stream_leaves_nothing_to_wake_the_sink(
    streams: Streams, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane still watched after its end would keep a core busy."""
    poller = NotedPoller()
    monkeypatch.setattr(sink, "Poller", lambda: poller)
    borrower = Borrower(transports=("tcp",), tcp_lanes=LANES)
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed)
    stream = newest(streams)
    assert stream.fileno() in poller.watched
    assert not poller.watched & {lane.fileno() for lane in streams[stream]}
    borrower.close()


def test_within_one_host_a_stream_has_one_lane_unless_told(
    streams: Streams, lender: Lender
) -> None:
    borrower = Borrower(transports=("tcp",))
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed)
    ((stream, lanes),) = streams.items()
    assert len(lanes) == 1 and not stream.statistics().num_dialling
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
