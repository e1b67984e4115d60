"""Real processes killed or stopped while a prefix is pulled: as `test_transfer_kill`, of loans.

Points are drawn from a seed that is the test's parameters. Leases are a minute long, so what ends
them is not their term.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from math import inf

import pytest
from support.census import back_to, settled
from support.eventually import eventually
from support.fetching import TimedEnds, TimedOutcome
from support.nursery import Child, Nursery
from support.outcomes import same_bytes
from support.prefixes import Shelf, prefix_of
from support.transfer import Borrower, Lender
from support.transfer_process import (
    LAYOUT,
    LEASE_BLOCKS,
    NUM_LEASES,
    pack_prefix,
    pull_whole,
    unpack_prefix,
    whole,
)

from kvtransfer.endings import Landed, Lost
from protocol.errors import PeerLost

NUM_BLOCKS = NUM_LEASES * LEASE_BLOCKS
VICTIMS = 5
EACH = NUM_LEASES // VICTIMS
BATCHES = 3
ENDED_WITHIN_S = 1.0

pytestmark = pytest.mark.system


@contextmanager
def family(nursery: Nursery, part: str, *arguments: str) -> Iterator[list[Child]]:
    """Five children that play the same part with two leases each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                closing(nursery.child(part, *arguments, *map(str, leases_of(victim))))
            )
            for victim in range(VICTIMS)
        ]


def leases_of(victim: int) -> range:
    return range(victim * EACH, (victim + 1) * EACH)


def kill_each(children: list[Child], chance: random.Random, within_s: float) -> None:
    begun_s = time.monotonic()
    moments = sorted((chance.uniform(0.0, within_s), i) for i in range(len(children)))
    for moment_s, victim in moments:
        threading.Event().wait(max(0.0, begun_s + moment_s - time.monotonic()))
        children[victim].kill()


def check_pulled(outcome: TimedOutcome, lease: int, borrower: Borrower, truth: Lender) -> None:
    end, blocks = outcome.end, whole(lease)
    if isinstance(end, Landed):
        assert end.num_blocks == LEASE_BLOCKS and same_bytes(truth, borrower, blocks)
    else:
        assert isinstance(end, Lost) and isinstance(end.error, PeerLost), end
        assert same_bytes(truth, borrower, [blocks[index] for index in end.landed])
        assert not end.quarantined, "the dead write nowhere"


@pytest.mark.long
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_lender_killed_anywhere_ends_every_pull_and_leaves_no_wrong_byte(
    nursery: Nursery, truth: Lender, transport: str
) -> None:
    borrower = Borrower(layout=LAYOUT, num_blocks=NUM_BLOCKS, transports=(transport,))
    within_s, num_lost = 0.0, 0
    for batch in range(-1, BATCHES):  # the first undisturbed
        borrower.memory.blocks[:] = bytes(len(borrower.memory.blocks))
        with family(nursery, "lending source") as children:
            sources = [unpack_prefix(child.hear()) for child in children]
            begun_s = time.monotonic()
            outcomes = [
                pull_whole(borrower, sources[lease // EACH], lease) for lease in range(NUM_LEASES)
            ]
            if batch < 0:
                assert all(isinstance(outcome.end, Landed) for outcome in outcomes)
                within_s = max(outcome.told_s for outcome in outcomes) - begun_s
            else:
                kill_each(children, random.Random(f"lender {transport} {batch}"), within_s)
            for lease, outcome in enumerate(outcomes):
                check_pulled(outcome, lease, borrower, truth)
            num_lost += sum(isinstance(outcome.end, Lost) for outcome in outcomes)
        assert borrower.sink.num_fetches == 0
    assert num_lost, "nobody died in time to be missed"
    borrower.close()


@pytest.mark.long
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_puller_killed_anywhere_ends_every_loan(nursery: Nursery, transport: str) -> None:
    ends = TimedEnds()
    shelf = Shelf(blocks=None, num_blocks=NUM_BLOCKS)
    lender = Lender(
        layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=60.0, ends=ends, help_copy="always",
        on_borrow=shelf.hear,
    )  # fmt: skip
    pool, at_rest, within_s = bytes(lender.memory.blocks), settled(), inf

    def have_ended(num_loans: int) -> bool:
        return len(ends.told) == num_loans

    for batch in range(-2, BATCHES):  # the first two undisturbed
        with family(nursery, "pulling sink", transport) as children:
            for child in children:
                assert child.hear() == "ready"
            for child in children:
                child.say(pack_prefix(prefix_of(lender)))
            begun_s = time.monotonic()
            if batch < 0:
                eventually(partial(have_ended, NUM_LEASES * (batch + 3)))
                within_s = min(within_s, max(ends.told_s.values()) - begun_s)
            else:
                kill_each(children, random.Random(f"puller {transport} {batch}"), within_s)
        eventually(lambda: lender.source.num_leases == 0, ENDED_WITHIN_S)
        back_to(at_rest)
        assert not ends.twice and bytes(lender.memory.blocks) == pool
    reasons = {end.reason for end in ends.told.values()}
    assert "expired" in reasons, "nobody died in time to be missed"
    lender.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_lender_that_hangs_is_given_up_by_the_pulls_deadline(
    nursery: Nursery, transport: str
) -> None:
    borrower = Borrower(layout=LAYOUT, num_blocks=NUM_BLOCKS, transports=(transport,))
    with closing(nursery.child("lending source")) as child:
        source = unpack_prefix(child.hear())
        assert isinstance(pull_whole(borrower, source, 0).end, Landed)
        os.kill(child.pid, signal.SIGSTOP)
        outcome = pull_whole(borrower, source, 1)
        borrower.sink.cancel(outcome.fetch, reason="it takes too long")
        assert not getattr(outcome.end, "landed", ())
        os.kill(child.pid, signal.SIGCONT)
        assert isinstance(pull_whole(borrower, source, 1).end, Landed), "it goes on afterwards"
    borrower.close()
