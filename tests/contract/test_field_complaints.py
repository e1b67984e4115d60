"""What users of other transfer libraries reported, each made to happen to ours.

These are the libraries', numbered as in docs/field-failures.md, which also names the reports that do
not apply and why; the engines' are in test_engine_complaints.py. A name carries the thread it was
reported in. Both data planes, unless the report is about one kind.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import msgspec
import numpy as np
import pytest
from support.complaints import ended, error_of, lands, same_bytes, untouched
from support.eventually import eventually
from support.fetching import TimedEnds, fetch
from support.middle import Middle, NoHarm, Way
from support.transfer import LAYOUT, WITHIN_S, Borrower, Lender, fill

from kvtransfer.chunk import PIECE
from kvtransfer.messages import Chunk, stream_word
from kvtransfer.sink.sink import Aborted, Landed
from protocol.errors import CorruptBlock, LayoutMismatch, LeaseExpired, WireError


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends() -> TimedEnds:
    return TimedEnds()


@pytest.fixture
def lender(ends: TimedEnds) -> Iterator[Lender]:
    with closing(Lender(ends=ends)) as lender:
        yield lender


@pytest.fixture
def borrower(transport: str) -> Iterator[Borrower]:
    with closing(Borrower(transports=(transport,), allow_fallback=False)) as borrower:
        yield borrower


def test_1_vllm_52234_a_stale_block_reference_is_an_error_and_never_another_prompts_bytes(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    """Each block is described with the generation it was lent under."""
    ticket = lender.lend(range(4))
    lender.memory.generations[2] += 1
    fill(lender.memory, 2, salt=99)
    outcome = fetch(borrower, ticket, range(4))
    lender.write_all(ticket)
    assert error_of(outcome).retryable
    assert borrower.memory.block(2) != lender.memory.block(2)
    assert ended(ends, ticket) == "failed"


def test_2_vllm_21570_blocks_of_an_expired_lease_are_not_read(transport: str) -> None:
    """The source looks at the lease when it sends, not when it promised."""
    ends = TimedEnds()
    with (
        closing(Lender(lease_ttl_s=0.1, ends=ends)) as lender,
        closing(Borrower(transports=(transport,))) as borrower,
    ):
        ticket = lender.lend(range(4))
        lender.write_all(ticket)
        assert ended(ends, ticket) == "expired"
        for block in range(4):
            lender.memory.generations[block] += 1
            fill(lender.memory, block, salt=7)
        assert isinstance(error_of(fetch(borrower, ticket, range(4))), LeaseExpired)
        assert untouched(borrower)


def test_3_vllm_55181_an_exception_while_bytes_come_reaches_the_owner(
    transport: str, lender: Lender
) -> None:
    """Every fetch is ended and the worker is told that its sink is of no use any more."""
    told: list[str] = []

    def fail(slot: memoryview) -> None:
        raise RuntimeError("the driver says no")

    borrower = Borrower(transports=(transport,), tamper=fail, on_broken=told.append)
    tickets = [lender.lend(range(2)), lender.lend(range(2, 4))]
    outcomes = [
        fetch(borrower, ticket, range(2 * i, 2 * i + 2)) for i, ticket in enumerate(tickets)
    ]
    for ticket in tickets:
        lender.write_all(ticket)
    assert all(isinstance(outcome.end, Aborted) for outcome in outcomes)
    eventually(lambda: told == ["the kv sink is broken: the driver says no"])
    borrower.close()


def test_4_vllm_50754_a_source_that_cannot_go_on_tells_its_fetcher_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4), deadline_s=300.0)
    lender.source.publish(ticket.lease, ticket.num_tokens // 2)
    lender.source.fail(ticket.lease, "the forward raised")
    assert "the forward raised" in str(error_of(outcome))
    assert ended(ends, ticket) == "failed"


def test_5_sglang_36108_a_push_that_fails_half_way_is_signalled_not_waited_for(
    lender: Lender, borrower: Borrower
) -> None:
    """The failure is found while sending: a block's generation is no longer the lease's."""
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4), deadline_s=300.0)
    lender.source.publish(ticket.lease, LAYOUT.block_tokens)
    eventually(lambda: borrower.memory.block(0) == lender.memory.block(0))
    lender.memory.generations[3] += 1
    lender.source.publish(ticket.lease, ticket.num_tokens)
    assert "another request" in str(error_of(outcome))


def test_6_vllm_41269_a_request_rejected_on_decode_frees_its_blocks_on_prefill_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    lender.write_all(ticket)
    borrower.sink.drop(ticket, reason="the pool is full")
    assert ended(ends, ticket) == "released"
    assert ends.told[ticket.lease].detail == "the pool is full"


def test_7_vllm_53095_a_lease_is_renewed_on_a_pushing_stream_too(transport: str) -> None:
    """Renewals are control messages of the sink's thread, whoever moves the bytes."""
    with (
        closing(Lender(lease_ttl_s=0.5)) as lender,
        closing(Borrower(transports=(transport,), lease_ttl_s=0.5)) as borrower,
    ):
        ticket = lender.lend(range(4))
        outcome = fetch(borrower, ticket, range(4))
        lender.source.publish(ticket.lease, LAYOUT.block_tokens)
        for _ in range(3):  # three terms of a lease nobody renews
            assert lender.end_of(lender.lend([9]).lease).reason == "expired"
        lender.source.finish(ticket.lease, b"")
        assert isinstance(outcome.end, Landed)


def test_8_vllm_backport_33_a_link_that_breaks_is_made_again_by_the_next_fetch(
    lender: Lender, borrower: Borrower
) -> None:
    assert lands(lender, borrower)
    for _ in range(5):
        with closing(Lender()) as restarted:
            assert lands(restarted, borrower, range(50, 54))
        assert lands(lender, borrower)


def test_8_vllm_backport_33_a_stream_that_dies_in_the_middle_is_made_again_and_the_fetch_lands(
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


def test_9_nixl_2109_sources_that_come_and_go_while_others_are_fetched_from(
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


def test_10_smg_2503_a_source_outlives_sinks_that_vanish_while_they_fetch(
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


def test_11_nixl_1668_two_workers_that_meet_each_other_at_the_same_moment_do_not_hang(
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


@pytest.mark.parametrize("place", [0, 1, 255, LAYOUT.block_bytes - 1])
def test_12_vllm_44238_one_flipped_bit_anywhere_never_lands(
    transport: str, lender: Lender, place: int
) -> None:
    """That report could not be reproduced; ours could not go unseen."""

    def flip(slot: memoryview) -> None:
        slot[place] ^= 4

    with closing(Borrower(transports=(transport,), tamper=flip)) as borrower:
        ticket = lender.lend(range(3))
        lender.write_all(ticket)
        assert isinstance(error_of(fetch(borrower, ticket, range(3))), CorruptBlock)


class Overlapping(NoHarm):
    """Changes one number of every piece that passes."""

    def __init__(self, field: str, change: Callable[[int], int]) -> None:
        self._field = field
        self._change = change

    def word(self, way: Way, packed: bytes) -> list[bytes]:
        with suppress(WireError):
            word = stream_word.decode(packed)
            if isinstance(word, Chunk):
                pieces_P = np.frombuffer(word.pieces, PIECE).copy()
                for piece in pieces_P:
                    piece[self._field] = self._change(int(piece[self._field]))
                return [
                    stream_word.encode(msgspec.structs.replace(word, pieces=pieces_P.tobytes()))
                ]
        return [packed]


@pytest.mark.parametrize(
    "overlap",
    [
        Overlapping("num_bytes", lambda there: 2 * there),
        Overlapping("num_bytes", lambda there: there - 64),
        Overlapping("slot", lambda there: 0),
        Overlapping("token_count", lambda there: there + 1),
        Overlapping("index", lambda there: 1),
    ],
)
def test_13_vllm_54272_pieces_that_overlap_are_refused_before_a_byte_is_written(
    lender: Lender, borrower: Borrower, overlap: Overlapping
) -> None:
    with closing(Middle(overlap)) as middle:
        ticket = middle.lead(lender.lend(range(4)))
        lender.write_all(ticket)
        assert "describe" in str(error_of(fetch(borrower, ticket, range(4))))
    assert untouched(borrower) and lands(lender, borrower)


def test_14_vllm_43523_a_pair_that_cannot_be_mapped_is_refused_and_both_live_on(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    other = msgspec.structs.replace(LAYOUT, num_kv_heads=3)
    foreign = msgspec.structs.replace(ticket, layout=other)
    assert isinstance(error_of(fetch(borrower, foreign, range(4))), LayoutMismatch)
    assert ended(ends, ticket) == "released"
    assert lands(lender, borrower)


def test_15_nixl_922_a_slower_path_is_named_with_its_reason_or_refused(
    lender: Lender,
) -> None:
    """Also nixl#791 and vllm#26382."""
    with closing(Lender(transports=("tcp",))) as far, closing(Borrower()) as borrower:
        ticket = far.lend(range(2))
        far.write_all(ticket)
        end = fetch(borrower, ticket, range(2)).end
        assert isinstance(end, Landed) and end.transport == "tcp"
        assert "not shm" in end.transport_why
        assert borrower.sink.transports_used == (("tcp", 1),)
        with closing(Borrower(allow_fallback=False)) as strict:
            ticket = far.lend(range(2))
            assert "no fallback allowed" in str(error_of(fetch(strict, ticket, range(2))))


def test_17_sglang_33970_blocks_leave_only_when_their_bytes_are_written(
    lender: Lender, borrower: Borrower
) -> None:
    """What was in the block before the forward wrote it is never sent."""
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4))
    for index in range(4):
        fill(lender.memory, index, salt=1_000 + index)
        lender.source.publish(ticket.lease, (index + 1) * LAYOUT.block_tokens)
        eventually(lambda: borrower.memory.block(index) == lender.memory.block(index))  # noqa: B023
        assert not any(borrower.memory.blocks[(index + 1) * LAYOUT.block_bytes :])
    lender.source.finish(ticket.lease, b"")
    assert isinstance(outcome.end, Landed)
