"""Staging between unlike peers, over a device: a killed sink, tensor-parallel ranks."""

from contextlib import ExitStack, closing

import numpy as np
import pytest
from numpy.typing import NDArray
from support.device import FakeDeviceMemory
from support.eventually import eventually
from support.nursery import Nursery
from support.outcomes import same_bytes
from support.transfer import LAYOUT, NUM_BLOCKS, Borrower, Lender, Slot
from support.transfer_process import LAYOUT as LARGE
from support.transfer_process import LEASE_BLOCKS, pack, whole

from kvtransfer.endings import Landed
from protocol.layout import KvLayout, shard

pytestmark = pytest.mark.long


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Lender, "on_device", True)
    return str(request.param)


@pytest.mark.system
def test_a_killed_sink_costs_its_leases_and_its_ring_comes_back(
    nursery: Nursery, transport: str
) -> None:
    lender = Lender(layout=LARGE, num_blocks=2 * LEASE_BLOCKS, lease_ttl_s=60.0)
    with closing(lender), closing(nursery.child("sink", "60", transport, "0", "1")) as child:
        memory = lender.memory
        assert isinstance(memory, FakeDeviceMemory) and child.hear() == "ready"
        for lease in range(2):
            ticket = lender.lend(whole(lease))
            child.say(pack(ticket))
            assert child.hear() == "fetching"
            lender.source.publish(ticket.lease, ticket.num_tokens // 2)  # it waits for the rest
        eventually(lambda: memory.staging.used_bytes)
        child.kill()
        assert [lender.ends.get(timeout=10.0).reason for _ in range(2)] == ["expired"] * 2
        eventually(lambda: not memory.staging.used_bytes)
        assert not memory.fake.registered
        another = Borrower(layout=LARGE, num_blocks=2 * LEASE_BLOCKS, transports=(transport,))
        with closing(another):
            ticket = lender.lend(whole(1))
            outcome = another.fetch(ticket, [Slot(i, block) for i, block in enumerate(whole(1))])
            lender.write_all(ticket)
            assert isinstance(outcome.end, Landed)
            assert same_bytes(lender, another, whole(1))


@pytest.mark.parametrize("sink_on_device", [False, True])
def test_two_ranks_fill_the_blocks_of_one_between_them(
    transport: str, sink_on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Borrower, "on_device", sink_on_device)
    parts = [shard(LAYOUT, rank=rank, size=2) for rank in range(2)]
    with ExitStack() as ends:
        lenders = [ends.enter_context(closing(Lender(layout=part))) for part in parts]
        borrower = ends.enter_context(closing(Borrower(transports=(transport,))))
        tickets = [lender.lend(range(NUM_BLOCKS)) for lender in lenders]
        outcomes = [
            borrower.fetch(ticket, [Slot(b, b) for b in range(NUM_BLOCKS)], heads=part.heads)
            for ticket, part in zip(tickets, parts, strict=True)
        ]
        for lender, ticket in zip(lenders, tickets, strict=True):
            lender.write_all(ticket)
        assert all(isinstance(outcome.end, Landed) for outcome in outcomes)
        for block in range(NUM_BLOCKS):
            dealt = [_by_head(lender.memory.block(block), lender.layout) for lender in lenders]
            expected = np.concatenate(dealt, axis=2)
            assert np.array_equal(_by_head(borrower.memory.block(block), LAYOUT), expected)


def _by_head(block: memoryview, layout: object) -> NDArray[np.uint8]:
    """[L, 2, G, S * D * bytes]: a block's bytes, head by head."""
    assert isinstance(layout, KvLayout)
    by_head: NDArray[np.uint8] = np.frombuffer(block, np.uint8)
    return by_head.reshape(layout.num_layers, 2, len(layout.heads), -1)
