"""What a TCP stream does with frames that make no sense, and in which order it tells ends."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.eventually import eventually
from support.tcp_pair import BLOCK_BYTES, NUM_BLOCKS, TWO, Pairs, chunk_of, done

from kvtransfer.transports.tcp.frames import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    pack_head,
    unpack_header,
)
from kvtransfer.transports.tcp.messages import tcp_to_sink
from kvtransfer.transports.tcp.order import MAX_AHEAD, ChunkOrder
from protocol.errors import PeerLost, WireError


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    pairs.close()


@pytest.mark.parametrize("num_bytes", [0, 10, HEADER_BYTES, HEADER_BYTES + 9, HEADER_BYTES + 999])
def test_a_frame_cut_short_is_never_told_as_landed(pairs: Pairs, num_bytes: int) -> None:
    pair = pairs.make()
    chunk = chunk_of(pair.lent, [0], [0])
    frame = pack_head(chunk, number=1, body_bytes=BLOCK_BYTES) + bytes(pair.lent.block(0))
    pair.ours[0].send(frame[:num_bytes])
    pair.ours[0].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerLost):
        eventually(lambda: pair.sink.receive(pair.taker))
    assert pair.taker.words == []


@pytest.mark.parametrize("place", range(0, HEADER_BYTES, 3))
def test_a_header_with_one_flipped_bit_ends_the_stream(pairs: Pairs, place: int) -> None:
    pair = pairs.make()
    frame = bytearray(pack_head(done(), number=0, body_bytes=0))
    frame[place] ^= 4
    pair.ours[0].send(frame)
    with pytest.raises(WireError, match="header"):
        eventually(lambda: pair.sink.receive(pair.taker))


def test_a_word_with_one_flipped_bit_ends_the_stream(pairs: Pairs) -> None:
    pair = pairs.make()
    frame = bytearray(pack_head(chunk_of(pair.lent, [0], [0]), number=1, body_bytes=BLOCK_BYTES))
    frame[HEADER_BYTES + 40] ^= 4
    pair.ours[0].send(frame)
    with pytest.raises(WireError, match="message is broken"):
        eventually(lambda: pair.sink.receive(pair.taker))


@pytest.mark.parametrize("body_bytes", [0, BLOCK_BYTES - 1, BLOCK_BYTES + 1])
def test_a_chunk_of_another_length_than_its_pieces_ends_the_stream(
    pairs: Pairs, body_bytes: int
) -> None:
    pair = pairs.make()
    pair.ours[0].send(pack_head(chunk_of(pair.lent, [0], [0]), number=1, body_bytes=body_bytes))
    with pytest.raises(WireError, match="chunk"):
        eventually(lambda: pair.sink.receive(pair.taker))
    assert not pair.taker.right


def test_a_chunk_outside_the_pool_ends_the_stream(pairs: Pairs) -> None:
    pair = pairs.make()
    chunk = chunk_of(pair.lent, [0], [NUM_BLOCKS])
    pair.ours[0].send(pack_head(chunk, number=1, body_bytes=BLOCK_BYTES))
    with pytest.raises(WireError, match="outside the pool"):
        eventually(lambda: pair.sink.receive(pair.taker))


def test_a_chunk_that_comes_twice_ends_the_stream(pairs: Pairs) -> None:
    pair = pairs.make()
    pair.taker.wanted = set()
    frame = pack_head(chunk_of(pair.lent, [0], [0]), number=1, body_bytes=4) + b"1234"
    pair.ours[0].send(2 * frame)
    with pytest.raises(WireError, match="came twice"):
        eventually(lambda: pair.sink.receive(pair.taker))


@given(st.binary(min_size=0, max_size=2 * HEADER_BYTES))
def test_random_headers_are_refused(packed: bytes) -> None:
    with pytest.raises(WireError):
        unpack_header(packed)


@pytest.mark.parametrize("body_bytes", [MAX_BODY_BYTES + 1, 2**63])
def test_a_frame_beyond_the_limits_is_refused(body_bytes: int) -> None:
    with pytest.raises(WireError, match="a frame of"):
        unpack_header(pack_head(done(), number=1, body_bytes=body_bytes)[:HEADER_BYTES])


def test_a_header_says_what_was_packed() -> None:
    head = pack_head(done(TWO), number=9, body_bytes=77)
    header = unpack_header(head[:HEADER_BYTES])
    word = head[HEADER_BYTES:]
    header.check_message(word)
    assert (header.number, header.body_bytes, header.message_bytes) == (9, 77, len(word))
    assert tcp_to_sink.decode(word) == done(TWO)


@given(st.permutations(range(1, 9)), st.integers(0, 8))
def test_a_finish_comes_right_after_the_last_chunk_begun_before_it(
    numbers: list[int], after: int
) -> None:
    order = ChunkOrder()
    told = order.add_finish(done(), after=after)
    ended: set[int] = set()
    for number in numbers:
        assert bool(told) == (set(range(1, after + 1)) <= ended)
        told = told + order.end_chunk(number)
        ended.add(number)
    assert told == [done()]


def test_lanes_that_drift_apart_without_end_are_refused() -> None:
    order = ChunkOrder()
    with pytest.raises(WireError, match="out of order"):
        for number in range(2, MAX_AHEAD + 4):
            order.end_chunk(number)
