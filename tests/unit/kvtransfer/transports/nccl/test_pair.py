"""A communicator that is made, used, broken off, and made again."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from support.eventually import eventually
from support.fake_collectives import FakeCollectives
from support.fake_driver import FakeDriver

from kvtransfer.native.copy import Span
from kvtransfer.transports.nccl.pair import Pair, Staging
from protocol.errors import PeerLost, TransferError

STAGED_BYTES = 1 << 16
NUM_STAGED = 2
PATIENCE_S = 5.0


@dataclass
class End:
    """One process's device, library and clock."""

    rank: int
    driver: FakeDriver = field(default_factory=FakeDriver)
    now_s: float = 100.0

    def __post_init__(self) -> None:
        self.collectives = FakeCollectives(self.driver, patience_s=PATIENCE_S)

    def pair(self, unique_id: bytes) -> Pair:
        staging = Staging(self.driver, num=NUM_STAGED, num_bytes=STAGED_BYTES)
        return Pair(
            driver=self.driver, collectives=self.collectives, unique_id=unique_id, rank=self.rank,
            staging=staging, clock=lambda: self.now_s,
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
    span = pair.staging.take_span()
    assert span is not None
    return span


def transferred(ends: tuple[End, End], pairs: tuple[Pair, Pair], content: bytes) -> bytes:
    """What comes out of the sink's staging."""
    spans = [taken(pair) for pair in pairs]
    ends[0].driver.bytes_of(spans[0])[: len(content)] = content
    for pair, span in zip(pairs, spans, strict=True):
        pair.post_transfer(span, len(content))
    done: list[object] = []

    def both_done() -> bool:
        for pair in pairs:
            done.extend(pair.advance())
        return len(done) == 2

    eventually(both_done)
    for pair, span in zip(pairs, spans, strict=True):
        pair.staging.return_span(span)
    return bytes(ends[1].driver.bytes_of(spans[1])[: len(content)])


def test_what_one_end_posts_arrives_at_the_other(
    ends: tuple[End, End], pairs: tuple[Pair, Pair]
) -> None:
    for content in (b"sixteen bytes of", bytes(range(256)) * 256):
        assert transferred(ends, pairs, content) == content
    assert not any(pair.is_busy for pair in pairs)


def test_staging_is_bounded(pairs: tuple[Pair, Pair]) -> None:
    staging = pairs[0].staging
    assert [staging.take_span() is None for _ in range(NUM_STAGED + 1)] == [False] * NUM_STAGED + [
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
    pair = ends[0].pair(ends[0].collectives.unique_id())
    stream = ends[0].driver.streams[pair.stream.handle]
    with stream.held():
        pair.abort()
        eventually(lambda: ends[0].collectives.made[0].aborted)
        assert ends[0].driver.num_spans == NUM_STAGED and not pair.is_gone
    eventually(lambda: pair.is_gone)
    assert ends[0].driver.num_spans == 0


def test_after_an_abort_the_two_meet_again(ends: tuple[End, End]) -> None:
    for content in (b"the first bytes!", b"the second ones!"):
        unique_id = ends[0].collectives.unique_id()
        source, sink = (end.pair(unique_id) for end in ends)
        assert transferred(ends, (source, sink), content) == content
        for pair in (source, sink):
            pair.abort()
            eventually(lambda pair=pair: pair.is_gone)  # type: ignore[misc]
    assert all(end.driver.num_spans == 0 for end in ends)


def test_a_device_without_room_for_staging_gives_back_what_it_gave(ends: tuple[End, End]) -> None:
    ends[0].driver.room_bytes = STAGED_BYTES - 1
    with pytest.raises(TransferError, match="no room"):
        Staging(ends[0].driver, num=NUM_STAGED, num_bytes=STAGED_BYTES)
    assert ends[0].driver.num_spans == 0
