"""Slots that a stopped process may still write into are nobody's until it has gone on, or died."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from support.eventually import eventually
from support.fetching import fetch
from support.nursery import Child, Nursery
from support.outcomes import same_bytes
from support.transfer import Borrower, Lender
from support.transfer_process import LAYOUT, LEASE_BLOCKS, NUM_LEASES, unpack, whole

from kvtransfer.endings import Aborted, Lost

NUM_BLOCKS = NUM_LEASES * LEASE_BLOCKS
MOST_TRIES = 150
"""A helper is inside a slot for a millisecond or two of a transfer: catching it takes a few."""

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as nursery:
        yield nursery


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    with closing(
        Borrower(layout=LAYOUT, num_blocks=NUM_BLOCKS, transports=("shm",), lease_ttl_s=60.0)
    ) as borrower:
        yield borrower


def stopped_while_it_writes(nursery: Nursery, borrower: Borrower) -> tuple[Child, tuple[int, ...]]:
    """A source stopped inside slots of a fetch that was cancelled, and those slots."""
    chance = random.Random("quarantine")
    for _ in range(MOST_TRIES):
        child = nursery.child("source", "60", *map(str, range(NUM_LEASES)))
        tickets = [unpack(child.hear()) for _ in range(NUM_LEASES)]
        outcomes = [fetch(borrower, ticket, whole(n)) for n, ticket in enumerate(tickets)]
        threading.Event().wait(chance.uniform(0.002, 0.03))
        os.kill(child.pid, signal.SIGSTOP)
        for outcome in outcomes:
            borrower.sink.cancel(outcome.fetch)
        ends = [outcome.end for outcome in outcomes]
        caught = [end.quarantined for end in ends if isinstance(end, Aborted | Lost)]
        if any(caught):
            return child, tuple(block for blocks in caught for block in blocks)
        os.kill(child.pid, signal.SIGKILL)
        child.close()
    pytest.skip(f"the source was never caught writing in {MOST_TRIES} tries")


def test_slots_under_a_stopped_writer_come_back_when_it_has_gone_on(
    nursery: Nursery, borrower: Borrower
) -> None:
    child, quarantined = stopped_while_it_writes(nursery, borrower)
    assert borrower.quiet == []
    os.kill(child.pid, signal.SIGCONT)
    eventually(lambda: sorted(borrower.quiet) == sorted(quarantined))
    child.close()


def test_slots_under_a_stopped_writer_come_back_when_it_has_died(
    nursery: Nursery, borrower: Borrower
) -> None:
    child, quarantined = stopped_while_it_writes(nursery, borrower)
    child.kill()
    eventually(lambda: sorted(borrower.quiet) == sorted(quarantined))
    child.close()
    with closing(Lender(layout=LAYOUT, num_blocks=NUM_BLOCKS)) as lender:
        ticket = lender.lend(whole(0))
        lender.write_all(ticket)
        fetch(borrower, ticket, whole(0)).end  # noqa: B018
        assert same_bytes(lender, borrower, whole(0))
