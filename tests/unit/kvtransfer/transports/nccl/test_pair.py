"""A communicator that is made, used, broken off, and made again."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from support.eventually import eventually
from support.fake_collectives import FakeCollectives
from support.fake_driver import FakeDriver

from kvtransfer.device.staging import DeviceStaging
from kvtransfer.native.copy import Span
from kvtransfer.transports.nccl.pair import NUM_STAGED, Pair, Transfer
from protocol.errors import PeerLost

STAGED_BYTES = 1 << 16
PATIENCE_S = 5.0


@dataclass
class End:
    """One process's device, library and clock."""

    rank: int
    driver: FakeDriver = field(default_factory=FakeDriver)
    now_s: float = 100.0

    def __post_init__(self) -> None:
        self.collectives = FakeCollectives(self.driver, patience_s=PATIENCE_S)
        self.staging = DeviceStaging(self.driver)

    def pair(self, unique_id: bytes) -> Pair:
        return Pair(
            driver=self.driver, collectives=self.collectives, unique_id=unique_id, rank=self.rank,
            staging=self.staging, chunk_bytes=STAGED_BYTES, clock=lambda: self.now_s,
        )  # fmt: skip


@pytest.fixture
def ends() -> tuple[End, End]:
    return End(0), End(1)


@pytest.fixture
def pairs(ends: tuple[End, End]) -> Iterator[tuple[Pair, Pair]]:
    unique_id = ends[0].collectives.unique_id()
    source, sink = (end.pair(unique_id) for end in ends)
    yield source, sink
    for pair in (source, sink):
        pair.abort()
        eventually(lambda pair=pair: pair.is_gone)  # type: ignore[misc]


def taken(pair: Pair) -> Span:
    span = pair.take_span()
    assert span is not None
    return span


def transferred(ends: tuple[End, End], pairs: tuple[Pair, Pair], content: bytes) -> bytes:
    """What comes out of the sink's staging."""
    spans = [taken(pair) for pair in pairs]
    ends[0].driver.bytes_of(spans[0])[: len(content)] = content
    for pair, span in zip(pairs, spans, strict=True):
        pair.post_transfer(span, len(content))
    assert until_done(pairs, num=2) == 2
    for pair, span in zip(pairs, spans, strict=True):
        pair.return_span(span)
    return bytes(ends[1].driver.bytes_of(spans[1])[: len(content)])


def until_done(pairs: tuple[Pair, Pair], *, num: int) -> int:
    """So many transfers of both ends, or more."""
    done: list[Transfer] = []

    def all_done() -> bool:
        for pair in pairs:
            done.extend(pair.advance())
        return len(done) >= num

    eventually(all_done)
    return len(done)


def test_what_one_end_posts_arrives_at_the_other(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    for content in (b"sixteen bytes of", bytes(range(256)) * 256):
        assert transferred(ends, pairs, content) == content
    assert not any(pair.is_busy for pair in pairs)


def test_staging_is_bounded(pairs: tuple[Pair, Pair]) -> None:
    assert [pairs[0].take_span() is None for _ in range(NUM_STAGED + 1)] == [False] * NUM_STAGED + [
        True
    ]


def test_a_peer_that_never_comes_is_lost_within_the_patience(ends: tuple[End, End]) -> None:
    pair = ends[0].pair(ends[0].collectives.unique_id())
    ends[0].now_s += 4 * PATIENCE_S
    assert pair.advance() == []
    ends[0].now_s += 0.1
    with pytest.raises(PeerLost, match="joining took longer than 20"):
        pair.advance()
    pair.abort()
    eventually(lambda: pair.is_gone)
    assert ends[0].collectives.made[0].aborted and ends[0].driver.num_spans == 0


def test_a_transfer_that_hangs_is_lost_within_the_patience(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    transferred(ends, pairs, b"sixteen bytes of")
    pairs[1].post_transfer(taken(pairs[1]), STAGED_BYTES)
    pairs[1].advance()
    ends[1].now_s += PATIENCE_S + 0.1
    with pytest.raises(PeerLost, match="65536 bytes took longer than 5"):
        pairs[1].advance()


def test_an_error_of_the_library_is_a_lost_peer(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    transferred(ends, pairs, b"sixteen bytes of")
    ends[1].collectives.made[0].fail("remote error")
    with pytest.raises(PeerLost, match="remote error"):
        pairs[1].advance()


def test_an_aborted_pair_does_nothing_more(pairs: tuple[Pair, Pair]) -> None:
    pairs[0].abort()
    with pytest.raises(PeerLost, match="aborted"):
        pairs[0].advance()


def test_staging_is_kept_until_the_device_has_let_go_of_it(ends: tuple[End, End]) -> None:
    ends[0].staging = DeviceStaging(ends[0].driver, most_bytes=STAGED_BYTES)
    pair = ends[0].pair(ends[0].collectives.unique_id())
    span = taken(pair)
    with ends[0].driver.streams[pair.stream.handle].held():
        pair.abort()
        eventually(lambda: ends[0].collectives.made[0].aborted)
        assert ends[0].staging.take_span(STAGED_BYTES) is None and not pair.is_gone
    eventually(lambda: pair.is_gone)
    assert ends[0].staging.take_span(STAGED_BYTES) == span


def test_staging_is_kept_while_a_gather_into_it_is_under_way(ends: tuple[End, End]) -> None:
    ends[0].staging = DeviceStaging(ends[0].driver, most_bytes=STAGED_BYTES)
    pair, gathers = ends[0].pair(ends[0].collectives.unique_id()), ends[0].driver.stream()
    with gathers.held():
        pair.post_transfer(taken(pair), STAGED_BYTES, after=gathers.record())
        pair.abort()
        eventually(lambda: ends[0].collectives.made[0].aborted)
        assert ends[0].staging.take_span(STAGED_BYTES) is None and not pair.is_gone
    eventually(lambda: pair.is_gone)


def test_a_pair_that_is_gone_leaves_no_stream(ends: tuple[End, End]) -> None:
    for _ in range(64):
        pair = ends[0].pair(ends[0].collectives.unique_id())
        pair.abort()
        eventually(lambda pair=pair: pair.is_gone)  # type: ignore[misc]
    assert ends[0].driver.num_made == 64 and not ends[0].driver.streams


def test_after_an_abort_the_two_meet_again_in_the_same_staging(ends: tuple[End, End]) -> None:
    for content in (b"the first bytes!", b"the second ones!"):
        unique_id = ends[0].collectives.unique_id()
        source, sink = (end.pair(unique_id) for end in ends)
        assert transferred(ends, (source, sink), content) == content
        for pair in (source, sink):
            pair.abort()
            eventually(lambda pair=pair: pair.is_gone)  # type: ignore[misc]
    assert all(end.staging.num_bytes == STAGED_BYTES for end in ends)


def test_transfers_that_wait_while_the_library_launches_go_as_one(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    transferred(ends, pairs, b"sixteen bytes of")
    before = [end.collectives.made[0].num_groups for end in ends]
    for _ in range(4):
        for pair in pairs:
            pair.post_transfer(taken(pair), 16)
    until_done(pairs, num=8)
    assert [end.collectives.made[0].num_groups for end in ends] == [x + 2 for x in before]


def test_what_is_sent_in_one_launch_is_received_in_two(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    transferred(ends, pairs, b"sixteen bytes of")
    sent, received = ([taken(pair) for _ in range(2)] for pair in pairs)
    for number, span in enumerate(sent):
        ends[0].driver.bytes_of(span)[:16] = bytes([number + 1]) * 16
        pairs[0].post_transfer(span, 16)
    pairs[1].post_transfer(received[0], 16)
    num = until_done(pairs, num=1)
    pairs[1].post_transfer(received[1], 16)
    until_done(pairs, num=4 - num)
    for number, span in enumerate(received):
        assert bytes(ends[1].driver.bytes_of(span)[:16]) == bytes([number + 1]) * 16


def test_a_send_waits_for_what_fills_its_staging(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    gathers, span = ends[0].driver.stream(), taken(pairs[0])
    transferred(ends, pairs, b"sixteen bytes of")
    with gathers.held():
        pairs[0].post_transfer(span, 16, after=gathers.record())
        pairs[1].post_transfer(taken(pairs[1]), 16)
        for _ in range(3):
            assert not pairs[0].advance() and not pairs[1].advance()
    eventually(lambda: pairs[1].advance() or pairs[0].advance())


def test_a_receiver_has_room_for_a_chunk_when_sends_have_taken_all_staging() -> None:
    """Or two workers that fetch from each other would wait until both lost their patience."""
    sends = End(0)
    receives = End(1, driver=sends.driver)
    receives.staging = sends.staging = DeviceStaging(sends.driver, most_bytes=STAGED_BYTES)
    unique_id = sends.collectives.unique_id()
    sending, receiving = sends.pair(unique_id), receives.pair(unique_id)
    taken(sending)
    assert sending.take_span() is None
    taken(receiving)
    assert receiving.take_span() is None
    for pair in (sending, receiving):
        pair.abort()
        eventually(lambda pair=pair: pair.is_gone)  # type: ignore[misc]
