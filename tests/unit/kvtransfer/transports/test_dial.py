"""How a TCP stream and its lanes come up, or do not."""

import socket
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.eventually import eventually
from support.tcp_pair import AMPLE, HELLO, WELCOME, Pairs, Taker, chunk_of, sockets
from support.transfer import Borrower, Lender, Slot, fill

from kvtransfer.endings import Landed
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    StreamHello,
    stream_hello,
    stream_welcome,
)
from kvtransfer.plan import whole_blocks
from kvtransfer.transports import framing
from kvtransfer.transports.base import DialOptions, ListenOptions, SinkStream, Unreachable
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.tcp import plane as tcp
from kvtransfer.transports.tcp.frames import pack_head
from kvtransfer.transports.tcp.sink import TcpSinkSetup, TcpSinkStream
from kvtransfer.transports.tcp.source import TcpSourceStream
from kvtransfer.transports.tcp_socket import resolved
from protocol.errors import TransferError, WireError


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    pairs.close()


def listening_on(host: str) -> ListenOptions:
    return ListenOptions(host=host, epoch=HELLO.epoch)


def test_a_lane_may_not_come_twice(pairs: Pairs) -> None:
    pair = pairs.make()
    ours, theirs = sockets()
    with pytest.raises(WireError, match="lane 0"):
        pair.source.add_lane(ours, 0)
    ours.close()
    theirs.close()


def test_a_lane_that_does_not_come_up_is_done_without() -> None:
    """Half open: the source never welcomes it. Another is refused at once."""
    memory = BlockMemory.create(num_blocks=2, block_bytes=4096)
    silent = socket.create_server(("127.0.0.1", 0))
    where = f"127.0.0.1:{silent.getsockname()[1]}"
    closed = socket.create_server(("127.0.0.1", 0))
    nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    ours, theirs = sockets()

    def dial(address: str) -> Callable[[TcpSinkStream], Dial]:
        return lambda stream: tcp.dial_lane(DialOptions(address=address, hello=HELLO), 1, stream)

    setup = TcpSinkSetup(window_bytes=AMPLE, lanes=[dial(where), dial(nowhere)])
    sink = TcpSinkStream(theirs, memory, setup)
    eventually(lambda: (sink.receive(Taker(memory)), sink.statistics().num_dialling == 1)[1])
    ours.setblocking(True)
    lent = chunk_of(memory, [0], [1])
    ours.sendall(pack_head(lent, number=1, body_bytes=4096) + bytes(4096))
    taker = Taker(memory)
    eventually(lambda: (sink.receive(taker), taker.right == [1])[1])
    sink.close()
    for sock in (ours, silent):
        sock.close()
    memory.close()


class Door:
    """What `kvtransfer.source.sinks` does with the connections of one sink."""

    def __init__(self, listener: tcp.TcpListener) -> None:
        self.stream: TcpSourceStream | None = None
        self.lanes: list[int] = []
        self._listener = listener
        self._greeting: list[tuple[socket.socket, framing.FirstMessage[StreamHello]]] = []

    def look(self) -> None:
        while (sock := self._listener.accept()) is not None:
            self._greeting.append((sock, framing.FirstMessage(stream_hello)))
        for sock, reader in list(self._greeting):
            if (hello := reader.read(sock)) is None:
                continue
            self._greeting.remove((sock, reader))
            self.lanes.append(hello.lane)
            if self.stream is None:
                stream = self._listener.welcome(sock, WELCOME, hello, [])
                assert isinstance(stream, TcpSourceStream)
                self.stream = stream
            else:
                framing.send_message(sock, stream_welcome.encode(WELCOME))
                self.stream.add_lane(sock, hello.lane)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dialled_stream_brings_its_other_lanes_up_by_itself(host: str) -> None:
    memory = BlockMemory.create(num_blocks=4, block_bytes=4096)
    expected = fill(memory, 0)
    listener = tcp.TcpListener(memory, listening_on(host))
    address = listener.address.replace("*", host)
    dial = tcp.dial(memory, DialOptions(address=address, hello=HELLO, tcp_lanes=3))
    door, taker = Door(listener), Taker(memory)
    streams: list[SinkStream] = []

    def up() -> bool:
        door.look()
        if streams:
            streams[0].receive(taker)
        elif (stream := dial.advance()) is not None:
            streams.append(stream)
        return sorted(door.lanes) == [0, 1, 2]

    eventually(up)
    assert door.stream is not None
    door.stream.offer(
        chunk_of(memory, [0], [3]), whole_blocks(np.array([0], np.uint32), memory.block_bytes)
    )
    door.stream.flush()
    eventually(lambda: streams[0].receive(taker) or taker.right == [3])
    assert memory.block(3) == expected
    door.stream.close()
    streams[0].close()
    listener.close()
    memory.close()


@pytest.mark.parametrize("address", ["prefill-0.svc:5000", ":5000", "1.2.3.4:x", "1.2.3.4", ""])
def test_what_is_no_address_is_refused_and_never_looked_up(address: str) -> None:
    memory = BlockMemory.create(num_blocks=4, block_bytes=4096)
    with pytest.raises(Unreachable, match="no IP address"):
        tcp.dial(memory, DialOptions(address=address, hello=HELLO))
    memory.close()


def test_a_host_that_is_not_ours_cannot_be_listened_on() -> None:
    memory = BlockMemory.create(num_blocks=4, block_bytes=4096)
    with pytest.raises(TransferError, match="cannot listen"):
        tcp.TcpListener(memory, listening_on("192.0.2.1"))
    memory.close()


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "127.0.0.1"),
     ("no..where", "no..where"), ("", "")],
)  # fmt: skip
def test_a_source_looks_its_own_name_up(host: str, address: str) -> None:
    assert resolved(host) == address


def test_everything_of_a_transfer_works_over_ipv6() -> None:
    lender = Lender(transports=("tcp",), host="::1")
    borrower = Borrower(transports=("tcp",))
    ticket = lender.lend([4])
    outcome = borrower.fetch(ticket, [Slot(0, 9)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed), outcome.end
    assert borrower.memory.block(9) == lender.memory.block(4)
    borrower.close()
    lender.close()
