"""The TCP data plane between two pools, over real sockets, without a session above it."""

import random
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from support.eventually import eventually
from support.tcp_pair import BLOCK_BYTES, NUM_BLOCKS, ONE, TWO, Pair, Pairs, done
from support.transfer import fill

from kvtransfer.chunk import PIECE, Landing, pack_chunk
from kvtransfer.messages import Chunk
from kvtransfer.native import copy as native_copy
from kvtransfer.native import flows
from kvtransfer.plan import Ranges
from kvtransfer.transports.tcp.lane import Lane
from kvtransfer.transports.tcp.messages import Credit, TcpToSink, tcp_to_source
from protocol.errors import PeerLost, WireError


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    pairs.close()


@pytest.fixture(params=["kernels", "twin"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C kernels, and as on a machine without a compiler."""
    if request.param == "twin":
        for user in (native_copy, flows):
            monkeypatch.setattr(user, "kernels", lambda: None)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("num_lanes", [1, 3])
def test_scattered_blocks_land_in_the_slots_they_are_for(pairs: Pairs, num_lanes: int) -> None:
    pair = pairs.make(num_lanes=num_lanes)
    blocks = random.Random(7).sample(range(NUM_BLOCKS), NUM_BLOCKS)
    for first in range(0, NUM_BLOCKS, 8):
        pair.offer(blocks[first : first + 8], list(range(first, first + 8)))
    pair.source.finish(done())
    pair.move(lambda: "finish of 1" in pair.taker.words)
    assert sorted(pair.taker.right) == list(range(NUM_BLOCKS)) and not pair.taker.wrong
    assert all(pair.landed(slot, block) for slot, block in enumerate(blocks))
    assert pair.unsent_bytes == 0


def test_all_lanes_carry_chunks(pairs: Pairs) -> None:
    pair = pairs.make(num_lanes=3)
    for block in range(30):
        pair.offer([block], [block])
    pair.source.finish(done())
    pair.move(lambda: "finish of 1" in pair.taker.words)
    assert all(number > 0 for number in pair.sink.statistics().last_numbers)


def test_a_piece_may_be_many_ranges_of_any_size(pairs: Pairs) -> None:
    """As with another tensor-parallel degree; odd sizes are summed after they landed."""
    pair = pairs.make()
    pieces_P = np.zeros(2, PIECE)
    pieces_P["slot"], pieces_P["num_bytes"] = [3, 4], [1_000, 333]
    offsets_R = np.array([5, 900, 70_000, 41], np.int64)
    ranges = Ranges(
        offsets_R=offsets_R,
        sizes_R=np.array([500, 250, 250, 333], np.int64),
        starts_P=np.array([0, 3, 4], np.int64),
    )
    pieces_P["checksum"] = pair.lent.checksums(ranges)
    chunk = pack_chunk(
        fetch=ONE, attempt=1, pieces_P=pieces_P, blocks_PB=np.zeros((2, 1), np.uint32)
    )
    landing = Landing(chunk, pieces_P, np.zeros((2, 1), np.uint32), ranges, ranges)
    pair.taker.begin_chunk = lambda chunk: landing  # type: ignore[method-assign]
    pair.source.offer(chunk, ranges)
    pair.move(lambda: bool(pair.taker.words))
    assert pair.taker.right == [3, 4]


def test_a_finish_waits_for_chunks_of_a_slower_lane(pairs: Pairs) -> None:
    pair = pairs.make(num_lanes=2, held=True)
    assert pair.held is not None
    pair.offer([0], [0])
    pair.offer([1], [1])
    pair.source.finish(done())
    pair.move(lambda: pair.unsent_bytes == 0 and pair.taker.right == [1])
    assert pair.taker.words == ["chunk of 1"]
    pair.held.is_released = True
    pair.move(lambda: len(pair.taker.words) == 3)
    assert pair.taker.words == ["chunk of 1", "chunk of 1", "finish of 1"]


def test_a_dropped_fetch_reads_nothing_more_of_the_pool(pairs: Pairs) -> None:
    """The chunk already begun is filled up with zeros, and so is not verified; the others never
    leave."""
    pair = pairs.make()
    large = list(range(50))
    pair.offer(large, large)
    pair.offer([51], [51])
    pair.offer([52], [52], fetch=TWO)
    pair.source.flush()
    assert 0 < pair.unsent_bytes < 52 * BLOCK_BYTES
    pair.source.drop(ONE)
    for block in range(NUM_BLOCKS):
        if block != 52:
            fill(pair.lent, block, salt=1)
    pair.source.finish(done(TWO))
    pair.move(lambda: "finish of 2" in pair.taker.words)
    assert 49 in pair.taker.wrong and not any(pair.taker.memory.block(49))
    assert 51 not in pair.taker.wrong and pair.landed(52, 52)
    for slot in pair.taker.wrong:
        assert not pair.landed(slot, slot)


def test_a_fetch_stopped_when_its_last_byte_has_come_leaves_the_lane_free(pairs: Pairs) -> None:
    pair = pairs.make()
    pair.offer([0], [0])
    pair.source.flush()
    lane = Lane(pair.theirs[0])
    chunk, body_bytes = head(pair, lane)
    assert isinstance(chunk, Chunk)
    landing = pair.taker.begin_chunk(chunk)
    assert landing is not None
    lane.land(landing, pair.taker.memory.span)
    read_body(pair, lane)
    assert lane.stop_writing(ONE) is landing
    end = lane.pop_end()
    assert end is not None and end[0] is None and lane.flow is None
    pair.offer([1], [1], fetch=TWO)
    pair.source.finish(done(TWO))
    chunk, body_bytes = head(pair, lane)
    assert chunk.fetch == TWO
    lane.discard(body_bytes)
    read_body(pair, lane)
    assert lane.pop_end() == (None, None)
    assert head(pair, lane) == (done(TWO), 0)


def head(pair: Pair, lane: Lane) -> tuple[TcpToSink, int]:
    """The next frame of a lane, while the source sends."""

    def read() -> tuple[TcpToSink, int] | None:
        pair.source.flush()
        return lane.read_head()

    found = eventually(read)
    assert found is not None
    return found


def read_body(pair: Pair, lane: Lane) -> None:
    """All of the frame's bytes, while the source sends."""
    flow = lane.flow
    assert flow is not None

    def whole() -> bool:
        pair.source.flush()
        flows.receive([flow], idle=[], budget=1 << 20)
        return flow.state == flows.MOVED

    eventually(whole)


def test_a_stopped_fetch_is_not_written_any_further(pairs: Pairs) -> None:
    pair = pairs.make()
    large = list(range(50))
    pair.offer(large, large)
    pair.offer([60], [60], fetch=TWO)
    pair.source.flush()
    pair.sink.receive(pair.taker)
    assert pair.taker.begun and not pair.taker.words
    assert pair.sink.stop_writing(ONE)
    before = bytes(pair.taker.memory.blocks)
    pair.move(lambda: pair.taker.words == ["chunk of 2"])
    pair.taker.memory.block(60)[:] = bytes(BLOCK_BYTES)
    assert bytes(pair.taker.memory.blocks) == before


def test_chunks_nobody_wants_are_read_and_thrown_away(pairs: Pairs) -> None:
    pair = pairs.make()
    pair.taker.wanted = {TWO}
    pair.offer([0, 1, 2], [0, 1, 2])
    pair.offer([3], [3], fetch=TWO)
    pair.source.finish(done(ONE))
    pair.move(lambda: "finish of 1" in pair.taker.words)
    assert pair.taker.right == [3] and not any(pair.taker.memory.block(0))


@pytest.mark.parametrize("window_blocks", [1, 2, 3])
def test_a_source_never_sends_more_than_was_granted_and_is_granted_all_in_the_end(
    pairs: Pairs, window_blocks: int
) -> None:
    window_bytes = window_blocks * BLOCK_BYTES
    pair = pairs.make(num_lanes=2, granted=window_bytes)
    for block in range(20):
        pair.offer([block], [block])

    def within_credit() -> bool:
        pair.source.flush()
        granted_bytes = pair.sink.statistics().granted_bytes
        assert 20 * BLOCK_BYTES - pair.unsent_bytes <= granted_bytes
        assert granted_bytes <= pair.sink.statistics().received_bytes + window_bytes
        pair.sink.receive(pair.taker)
        pair.source.receive()
        return len(pair.taker.right) == 20

    eventually(within_credit)
    assert pair.unsent_bytes == 0


def test_without_credit_nothing_leaves_until_it_comes(pairs: Pairs) -> None:
    """The other end grants nothing of its own accord: a lane alone, without a sink."""
    pair = pairs.make(granted=BLOCK_BYTES)
    lane = Lane(pair.theirs[0])
    pair.offer([0], [0])
    pair.offer([1], [1])
    pair.source.finish(done())
    discard_chunk(pair, lane)
    for _ in range(20):
        pair.source.receive()
        pair.source.flush()
        assert lane.read_head() is None
    assert pair.unsent_bytes == BLOCK_BYTES
    pair.theirs[0].send(credit_frame(2 * BLOCK_BYTES))

    def flowing() -> bool:
        pair.source.receive()
        pair.source.flush()
        return pair.unsent_bytes < BLOCK_BYTES

    eventually(flowing)
    discard_chunk(pair, lane)
    assert head(pair, lane) == (done(), 0)


def discard_chunk(pair: Pair, lane: Lane) -> None:
    chunk, body_bytes = head(pair, lane)
    assert isinstance(chunk, Chunk) and body_bytes == BLOCK_BYTES
    lane.discard(body_bytes)
    read_body(pair, lane)
    assert lane.pop_end() == (None, None)


def credit_frame(total_bytes: int) -> bytes:
    packed = tcp_to_source.encode(Credit(total_bytes=total_bytes))
    return len(packed).to_bytes(4, "little") + packed


def test_credit_that_is_taken_back_ends_the_stream(pairs: Pairs) -> None:
    pair = pairs.make(granted=1_000)
    pair.theirs[0].send(credit_frame(999))
    with pytest.raises(WireError, match="taken back"):
        eventually(lambda: pair.source.receive())


def test_a_sink_that_speaks_on_another_lane_is_refused(pairs: Pairs) -> None:
    pair = pairs.make(num_lanes=2)
    pair.theirs[1].send(b"x")
    with pytest.raises(WireError, match="unexpected"):
        eventually(lambda: pair.source.receive())


@pytest.mark.parametrize("dead", [0, 1])
def test_one_lane_that_dies_ends_the_stream_at_the_source(pairs: Pairs, dead: int) -> None:
    pair = pairs.make(num_lanes=2)
    pair.theirs[dead].shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost):
        eventually(lambda: pair.source.receive())


@pytest.mark.parametrize("dead", [0, 1])
def test_one_lane_that_dies_ends_the_stream_at_the_sink(pairs: Pairs, dead: int) -> None:
    pair = pairs.make(num_lanes=2)
    pair.offer([0], [0])
    pair.ours[dead].shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost):
        eventually(lambda: pair.sink.receive(pair.taker))


def test_a_stream_whose_reader_is_gone_says_so_when_it_sends(
    pairs: Pairs,
) -> None:
    pair = pairs.make()
    for sock in pair.theirs:
        sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost):
        for _ in range(50):
            pair.offer(list(range(NUM_BLOCKS)), list(range(NUM_BLOCKS)))
            pair.source.flush()
    pair.sink.close()
    assert pair.sink.close()
