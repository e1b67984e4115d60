"""Whatever goes wrong below, a block lands with the bytes it was asked for, or not at all."""

from collections.abc import Callable
from contextlib import closing, suppress

import msgspec
import numpy as np
import pytest
from support.eventually import eventually
from support.fetching import TimedEnds, fetch
from support.middle import Middle, NoHarm, Way
from support.outcomes import ended, error_of, lands, untouched
from support.transfer import LAYOUT, Borrower, Lender, fill

from kvtransfer.chunk import PIECE
from kvtransfer.endings import Aborted, Landed
from kvtransfer.messages import Chunk
from kvtransfer.transports.announcing import announcement
from protocol.errors import CorruptBlock, LeaseExpired, WireError


def test_a_stale_block_reference_is_an_error_and_never_another_prompts_bytes(
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


def test_blocks_of_an_expired_lease_are_not_read(transport: str) -> None:
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


@pytest.mark.parametrize("place", [0, 1, 255, LAYOUT.block_bytes - 1])
def test_one_flipped_bit_anywhere_never_lands(transport: str, lender: Lender, place: int) -> None:
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
            word = announcement.decode(packed)
            if isinstance(word, Chunk):
                pieces_P = np.frombuffer(word.pieces, PIECE).copy()
                for piece in pieces_P:
                    piece[self._field] = self._change(int(piece[self._field]))
                return [
                    announcement.encode(msgspec.structs.replace(word, pieces=pieces_P.tobytes()))
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
def test_pieces_that_overlap_are_refused_before_a_byte_is_written(
    lender: Lender, borrower: Borrower, overlap: Overlapping
) -> None:
    with closing(Middle(overlap)) as middle:
        ticket = middle.lead(lender.lend(range(4)))
        lender.write_all(ticket)
        assert "describe" in str(error_of(fetch(borrower, ticket, range(4))))
    assert untouched(borrower) and lands(lender, borrower)


def test_blocks_leave_only_when_their_bytes_are_written(lender: Lender, borrower: Borrower) -> None:
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


def test_nothing_is_written_into_a_slot_once_its_fetch_has_ended(
    transport: str,
) -> None:
    """And sglang#24527, #27372, #35049, #38961: the next owner of the slot finds only its own
    bytes there, however much of the old transfer is still under way."""
    with (
        closing(Lender(num_blocks=4_000)) as lender,
        closing(Borrower(num_blocks=4_000, transports=(transport,))) as borrower,
    ):
        for _ in range(10):
            ticket = lender.lend(range(4_000))
            outcome = fetch(borrower, ticket, range(4_000))
            lender.write_all(ticket)
            eventually(lambda: any(borrower.memory.block(0)))
            borrower.sink.cancel(outcome.fetch)
            assert isinstance(outcome.end, Aborted | Landed)
            borrower.memory.blocks[:] = bytes(len(borrower.memory.blocks))
            assert lands(lender, borrower, range(4))  # comes after all of the old on its link
            assert not any(borrower.memory.blocks[4 * LAYOUT.block_bytes :])
            borrower.memory.blocks[:] = bytes(len(borrower.memory.blocks))


def test_the_last_of_hundreds_of_transfers_is_as_right_as_the_first(
    lender: Lender, borrower: Borrower
) -> None:
    """The same few blocks are lent, filled and fetched over and over."""
    for round_ in range(150):
        for block in range(40, 44):
            lender.memory.generations[block] += 1
            fill(lender.memory, block, salt=round_)
        assert lands(lender, borrower)


def test_a_partial_prefix_hit_fetches_exactly_the_blocks_it_lacks(
    lender: Lender, borrower: Borrower
) -> None:
    """Which block goes where is said for each, never told from the length of a list; the last,
    half-filled one too. And vllm#55470."""
    ticket = lender.lend([10, 11, 12, 13], num_tokens=14)
    lender.write_all(ticket)
    end = fetch(borrower, ticket, [33, 31], indices=[2, 3]).end
    assert isinstance(end, Landed) and end.num_blocks == 2
    assert borrower.memory.block(33) == lender.memory.block(12)
    assert borrower.memory.block(31) == lender.memory.block(13)
    assert sum(any(borrower.memory.block(block)) for block in range(64)) == 2


def test_a_transfer_that_failed_is_never_reported_as_a_smaller_success(
    lender: Lender, borrower: Borrower
) -> None:
    """And vllm#32200, #49250: landed means every block asked for; anything else is an error that
    says whether another worker may do better."""
    ticket = lender.lend(range(4))
    outcome = fetch(borrower, ticket, range(4))
    lender.source.publish(ticket.lease, 3 * LAYOUT.block_tokens)
    eventually(lambda: borrower.memory.block(2) == lender.memory.block(2))
    lender.source.fail(ticket.lease, "preempted")
    assert error_of(outcome).retryable
