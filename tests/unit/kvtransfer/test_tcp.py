import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.messages import Descriptor, FetchId
from kvtransfer.transports.tcp import (
    HEADER_BYTES,
    TcpSinkStream,
    TcpSourceStream,
    pack_header,
    unpack_header,
)
from protocol.errors import PeerLost, WireError

BLOCK_BYTES = 200_000
ONE, TWO = FetchId(1), FetchId(2)


def block(index: int, *, num_bytes: int = BLOCK_BYTES) -> Descriptor:
    return Descriptor(
        index=index, block_id=index + 50, token_start=index * 4, token_count=4,
        num_bytes=num_bytes, generation=7, checksum=2**64 - 1,
    )  # fmt: skip


@dataclass
class Taker:
    """Gives every wanted frame a slot of its own."""

    wanted: set[FetchId] = field(default_factory=lambda: {ONE, TWO})
    slots: dict[int, bytearray] = field(default_factory=dict)
    ended: list[tuple[FetchId, int]] = field(default_factory=list)

    def begin_frame(
        self, fetch: FetchId, attempt: int, slot_block: int, block: Descriptor
    ) -> memoryview | None:
        if fetch not in self.wanted:
            return None
        self.slots[block.index] = bytearray(BLOCK_BYTES)
        return memoryview(self.slots[block.index])

    def end_frame(self, fetch: FetchId, block: Descriptor) -> None:
        self.ended.append((fetch, block.index))


@dataclass
class Pair:
    source: TcpSourceStream
    sink: TcpSinkStream
    raw: socket.socket
    taker: Taker = field(default_factory=Taker)

    def push(self, fetch: FetchId, index: int) -> bytes:
        body = bytes([index + 1]) * BLOCK_BYTES
        self.source.push(fetch, 1, index + 10, block(index), memoryview(body))
        return body

    def move(self) -> None:
        """Everything that is queued goes across."""
        while self.source.queued_bytes:
            self.source.flush()
            self.sink.receive(self.taker)
        self.sink.receive(self.taker)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    pair = Pair(TcpSourceStream(ours), TcpSinkStream(theirs, block_bytes=BLOCK_BYTES), ours)
    yield pair
    pair.source.close()
    pair.sink.close()


def test_blocks_larger_than_the_socket_arrive_whole_and_in_order(pair: Pair) -> None:
    bodies = [pair.push(ONE, index) for index in range(5)]
    pair.move()
    assert pair.taker.ended == [(ONE, index) for index in range(5)]
    assert [bytes(pair.taker.slots[index]) for index in range(5)] == bodies
    assert pair.source.queued_bytes == 0


def test_a_dropped_fetch_sends_nothing_more_of_the_pool(pair: Pair) -> None:
    """The frame already begun is filled up with zeros; the others never leave."""
    pair.push(ONE, 0)
    pair.push(ONE, 1)
    body = pair.push(TWO, 2)
    pair.source.flush()
    pair.source.drop(ONE)
    pair.move()
    assert pair.taker.ended == [(ONE, 0), (TWO, 2)]
    assert pair.taker.slots[0][-1] == 0 and pair.taker.slots[0][0] == 1
    assert bytes(pair.taker.slots[2]) == body


def test_a_stopped_fetch_is_not_written_any_further(pair: Pair) -> None:
    pair.push(ONE, 0)
    body = pair.push(TWO, 1)
    pair.source.flush()
    pair.sink.receive(pair.taker)
    slot = bytes(pair.taker.slots[0])
    assert 0 in slot and slot[0] == 1
    pair.sink.stop_writing(ONE)
    pair.move()
    assert bytes(pair.taker.slots[0]) == slot
    assert pair.taker.ended == [(TWO, 1)] and bytes(pair.taker.slots[1]) == body


def test_frames_nobody_wants_are_read_and_thrown_away(pair: Pair) -> None:
    pair.taker.wanted = {TWO}
    pair.push(ONE, 0)
    pair.push(TWO, 1)
    pair.move()
    assert pair.taker.ended == [(TWO, 1)] and set(pair.taker.slots) == {1}


@pytest.mark.parametrize("num_bytes", [0, 10, HEADER_BYTES, HEADER_BYTES + 1, HEADER_BYTES + 999])
def test_a_frame_cut_short_is_never_told_as_complete(pair: Pair, num_bytes: int) -> None:
    frame = pack_header(ONE, 1, 10, block(0)) + bytes(BLOCK_BYTES)
    pair.raw.send(frame[:num_bytes])
    pair.raw.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerLost):
        pair.sink.receive(pair.taker)
    assert pair.taker.ended == []


@pytest.mark.parametrize("place", range(0, HEADER_BYTES, 5))
def test_a_header_with_one_flipped_bit_ends_the_stream(pair: Pair, place: int) -> None:
    header = bytearray(pack_header(ONE, 1, 10, block(0)))
    header[place] ^= 4
    pair.raw.send(header)
    with pytest.raises(WireError, match="header"):
        pair.sink.receive(pair.taker)


def test_a_frame_of_another_length_ends_the_stream(pair: Pair) -> None:
    pair.raw.send(pack_header(ONE, 1, 10, block(0, num_bytes=BLOCK_BYTES - 1)))
    with pytest.raises(WireError, match="bytes, not"):
        pair.sink.receive(pair.taker)


def test_a_sink_that_speaks_on_the_stream_is_refused(pair: Pair) -> None:
    pair.sink._sock.send(b"x")
    with pytest.raises(WireError, match="unexpected"):
        pair.source.receive()


def test_a_stream_whose_reader_is_gone_says_so(pair: Pair) -> None:
    pair.sink.close()
    with pytest.raises(PeerLost):
        pair.source.receive()
    pair.push(ONE, 0)
    with pytest.raises(PeerLost):
        pair.source.flush()


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_headers_are_refused(packed: bytes) -> None:
    with pytest.raises(WireError):
        unpack_header(memoryview(packed))


def test_a_header_says_what_was_packed() -> None:
    packed = pack_header(TWO, 3, 10, block(4))
    assert unpack_header(memoryview(packed)) == (TWO, 3, 10, block(4))
