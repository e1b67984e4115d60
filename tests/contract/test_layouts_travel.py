"""Layouts other than a whole worker's KV, through real sources and sinks: latents, states, parts.

Of what moves KV these are the ends; that a plan is right is tests/property/test_plan.py.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import numpy as np
import pytest
from support.relay import Pool, request_kv
from support.transfer import Borrower, Lender, Outcome, Slot

from kvtransfer.endings import Landed, Lost
from protocol.errors import LayoutMismatch
from protocol.layout import KvLayout, LatentLayout, Layout, StateLayout, shard

KV = KvLayout(num_layers=2, num_kv_heads=4, head_dim=8, block_tokens=4, dtype="float32")
LATENT = LatentLayout(num_layers=3, latent_dim=24, block_tokens=4, dtype="bfloat16")
STATE = StateLayout(num_bytes=5000)
NUM_BLOCKS = 12
LEASE = [7, 2, 9]
SLOTS = [5, 1, 8, 3, 4, 10]
Ends = Callable[[Layout, Layout], tuple[Lender, Borrower]]


@pytest.fixture(params=["shm", "tcp"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Makes a source and a sink of two layouts, by one transport."""
    with ExitStack() as stack:

        def make(source: Layout, target: Layout) -> tuple[Lender, Borrower]:
            lender = Lender(layout=source, num_blocks=NUM_BLOCKS)
            stack.callback(lender.close)
            borrower = Borrower(
                layout=target, num_blocks=NUM_BLOCKS, transports=[request.param],
                allow_fallback=False,
            )  # fmt: skip
            stack.callback(borrower.close)
            return lender, borrower

        yield make


def fetch(lender: Lender, borrower: Borrower, *, num_tokens: int, heads: range) -> Outcome:
    """Fetch all slots of a request that the source has written."""
    lease = LEASE[: lender.layout.num_blocks(num_tokens)]
    ticket = lender.lend(lease, num_tokens=num_tokens)
    num_slots = borrower.layout.num_blocks(num_tokens)
    slots = [Slot(index, SLOTS[index]) for index in range(num_slots)]
    outcome = borrower.fetch(ticket, slots, heads=heads)
    lender.write_all(ticket)
    return outcome


@pytest.mark.parametrize("block_tokens", [2, 4, 8])
def test_latents_arrive_in_blocks_of_another_size(ends: Ends, block_tokens: int) -> None:
    target = msgspec.structs.replace(LATENT, block_tokens=block_tokens)
    lender, borrower = ends(LATENT, target)
    num_tokens = 10
    kv_LHND = request_kv(LATENT, len(LEASE) * LATENT.block_tokens)
    full, expected = Pool(LATENT, NUM_BLOCKS), Pool(target, NUM_BLOCKS)
    full.lay(kv_LHND, LEASE)
    expected.lay(kv_LHND, SLOTS[: target.num_blocks(num_tokens)])
    lender.memory.blocks[:] = full.data.tobytes()
    assert isinstance(fetch(lender, borrower, num_tokens=num_tokens, heads=range(1)).end, Landed)
    assert bytes(borrower.memory.blocks) == expected.data.tobytes()


def test_a_state_arrives_whole_once_its_last_token_is_computed(ends: Ends) -> None:
    lender, borrower = ends(STATE, STATE)
    ticket, other = lender.lend([7], num_tokens=100), lender.lend([3], num_tokens=100)
    outcome = borrower.fetch(ticket, [Slot(0, 5)])
    lender.source.publish(ticket.lease, 99)
    later = borrower.fetch(other, [Slot(0, 6)])
    lender.write_all(other)
    assert isinstance(later.end, Landed)
    assert lender.sent(ticket.lease) == 0
    lender.write_all(ticket)
    end = outcome.end
    assert isinstance(end, Landed)
    assert (end.num_blocks, end.num_bytes) == (1, STATE.num_bytes)
    assert borrower.memory.block(5) == lender.memory.block(7)


def test_parts_of_two_ranks_fill_the_same_slots(ends: Ends) -> None:
    halves = [shard(KV, rank=rank, size=2) for rank in range(2)]
    first, borrower = ends(halves[0], KV)
    second, _ = ends(halves[1], KV)
    kv_LHND = request_kv(KV, len(LEASE) * KV.block_tokens)
    expected = Pool(KV, NUM_BLOCKS)
    expected.lay(kv_LHND, SLOTS[: len(LEASE)])
    for lender, layout in zip((first, second), halves, strict=True):
        part = Pool(layout, NUM_BLOCKS)
        part.lay(kv_LHND, LEASE)
        lender.memory.blocks[:] = part.data.tobytes()
    outcomes = [
        fetch(lender, borrower, num_tokens=12, heads=layout.heads)
        for lender, layout in zip((first, second), halves, strict=True)
    ]
    ended = [outcome.end for outcome in outcomes]
    assert all(isinstance(end, Landed) for end in ended), ended
    assert bytes(borrower.memory.blocks) == expected.data.tobytes()


def test_a_source_that_lacks_heads_is_refused_and_nothing_is_written(ends: Ends) -> None:
    lender, borrower = ends(shard(KV, rank=0, size=2), KV)
    end = fetch(lender, borrower, num_tokens=12, heads=KV.heads).end
    assert isinstance(end, Lost)
    assert isinstance(end.error, LayoutMismatch)
    assert "the source must hold range(0, 4)" in str(end.error)
    assert not np.frombuffer(borrower.memory.blocks, np.uint8).any()


def test_heads_that_the_sink_does_not_hold_are_the_callers_fault(ends: Ends) -> None:
    lender, borrower = ends(KV, shard(KV, rank=0, size=2))
    with pytest.raises(ValueError, match="heads"):
        fetch(lender, borrower, num_tokens=12, heads=KV.heads)
