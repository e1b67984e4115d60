"""Real processes, killed or stopped while blocks move: the other end always gets an end.

200 processes are killed, 50 of each end over each transport, five at a time at points drawn from
a seed that is the test's parameters. Leases are a minute long, so what ends them is not their
term. Sources help to copy whenever asked: they die while they write into the sink's pool, too.
"""

import os
import queue
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from support.census import back_to, settled
from support.eventually import eventually
from support.fetching import TimedEnds, TimedOutcome, fetch
from support.nursery import Child, Nursery
from support.outcomes import same_bytes
from support.transfer import Borrower, Lender
from support.transfer_process import LAYOUT, LEASE_BLOCKS, NUM_LEASES, pack, unpack, whole
from support.ucx import UCX

from kvtransfer.endings import Landed, Lost
from protocol.errors import PeerLost
from protocol.messages import Ticket

NUM_BLOCKS = NUM_LEASES * LEASE_BLOCKS
GUARD_BLOCKS = 8
"""At the end of the fetcher's pool; nobody may touch them."""
VICTIMS = 5
LEASES_EACH = NUM_LEASES // VICTIMS
BATCHES = 10
ENDED_WITHIN_S = 1.0
TRANSPORTS = ("shm", "tcp", UCX)

pytestmark = pytest.mark.system


def leases_of(victim: int) -> range:
    return range(victim * LEASES_EACH, (victim + 1) * LEASES_EACH)


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


def kill_each(children: list[Child], chance: random.Random, within_s: float) -> list[float]:
    """Kill every child at its own random moment; when each died, on our clock."""
    begun_s = time.monotonic()
    moments = sorted((chance.uniform(0.0, within_s), i) for i in range(len(children)))
    killed_s = [0.0] * len(children)
    for moment_s, victim in moments:
        threading.Event().wait(max(0.0, begun_s + moment_s - time.monotonic()))
        children[victim].kill()
        killed_s[victim] = time.monotonic()
    return killed_s


# -- the source is killed -----------------------------------------------------------------


def fetch_all(borrower: Borrower, tickets: list[Ticket]) -> list[TimedOutcome]:
    return [fetch(borrower, ticket, whole(lease)) for lease, ticket in enumerate(tickets)]


def tickets_of(children: list[Child]) -> list[Ticket]:
    return [unpack(child.hear()) for child in children for _ in range(LEASES_EACH)]


def check_fetched(outcome: TimedOutcome, lease: int, borrower: Borrower, truth: Lender) -> None:
    end, blocks = outcome.end, whole(lease)
    if isinstance(end, Landed):
        assert end.note == bytes([lease])
        assert same_bytes(truth, borrower, blocks)
    else:
        assert isinstance(end, Lost) and isinstance(end.error, PeerLost), end
        assert same_bytes(truth, borrower, [blocks[index] for index in end.landed])
        assert not end.quarantined, "the dead write nowhere"


def undisturbed_s(nursery: Nursery, borrower: Borrower) -> float:
    """How long all the transfers take when nobody dies."""
    with family(nursery, "source", "60") as children:
        tickets = tickets_of(children)
        begun_s = time.monotonic()
        outcomes = fetch_all(borrower, tickets)
        assert all(isinstance(outcome.end, Landed) for outcome in outcomes)
        return max(outcome.told_s for outcome in outcomes) - begun_s


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_source_killed_anywhere_ends_every_fetch_and_leaves_no_wrong_byte(
    nursery: Nursery, truth: Lender, transport: str
) -> None:
    borrower = Borrower(
        layout=LAYOUT, num_blocks=NUM_BLOCKS + GUARD_BLOCKS, transports=(transport,)
    )
    within_s = 1.2 * undisturbed_s(nursery, borrower)
    at_rest = settled()
    num_lost = 0
    for batch in range(BATCHES):
        borrower.memory.blocks[:] = bytes(len(borrower.memory.blocks))
        with family(nursery, "source", "60") as children:
            tickets = tickets_of(children)
            outcomes = fetch_all(borrower, tickets)
            killed_s = kill_each(children, random.Random(f"source {transport} {batch}"), within_s)
            for lease, outcome in enumerate(outcomes):
                check_fetched(outcome, lease, borrower, truth)
                assert outcome.told_s - killed_s[lease // LEASES_EACH] < ENDED_WITHIN_S
            num_lost += sum(isinstance(outcome.end, Lost) for outcome in outcomes)
        as_told = bytes(borrower.memory.blocks)
        assert borrower.sink.num_fetches == 0
        back_to(at_rest)
        assert bytes(borrower.memory.blocks) == as_told, "someone wrote after the end"
        assert not any(as_told[NUM_BLOCKS * LAYOUT.block_bytes :])
        assert all(len(outcome.ends) == 1 for outcome in outcomes)
    assert num_lost, "nobody died in time to be missed"
    borrower.close()


# -- the sink is killed -------------------------------------------------------------------


def let_all_fetch(children: list[Child], tickets: list[Ticket]) -> None:
    for victim, child in enumerate(children):
        for lease in leases_of(victim):
            child.say(pack(tickets[lease]))


def ready_sinks(children: list[Child]) -> None:
    for child in children:
        assert child.hear() == "ready"


def lend_all(lender: Lender) -> list[Ticket]:
    tickets = [lender.lend(whole(lease)) for lease in range(NUM_LEASES)]
    for ticket in tickets:
        lender.write_all(ticket)
    return tickets


def undisturbed_sinks_s(nursery: Nursery, lender: Lender, ends: TimedEnds, transport: str) -> float:
    with family(nursery, "sink", "60", transport) as children:
        ready_sinks(children)
        tickets = lend_all(lender)
        begun_s = time.monotonic()
        let_all_fetch(children, tickets)
        for _ in tickets:
            assert ends.get(timeout=10.0).reason == "released"
        return max(ends.told_s.values()) - begun_s


def check_lent(lender: Lender, ends: TimedEnds, ticket: Ticket, killed_s: float) -> bool:
    """True when the lease was asked for and ended in time; what was never asked for goes on
    until its term, or as here until its owner takes it back."""
    left_s = max(0.0, killed_s + ENDED_WITHIN_S - time.monotonic())
    eventually(lambda: ticket.lease in ends.told or not lender.sent(ticket.lease), left_s)
    if ticket.lease in ends.told:
        assert ends.told_s[ticket.lease] - killed_s < ENDED_WITHIN_S
        return True
    lender.source.fail(ticket.lease, "nobody came for it")
    eventually(lambda: ticket.lease in ends.told)
    return False


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sink_killed_anywhere_ends_every_lease_and_leaves_nothing(
    nursery: Nursery, transport: str
) -> None:
    ends = TimedEnds()
    lender = Lender(
        layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=60.0, ends=ends, help_copy="always"
    )
    pool = bytes(lender.memory.blocks)
    within_s = 1.2 * undisturbed_sinks_s(nursery, lender, ends, transport)
    at_rest = settled()
    num_broken = 0
    for batch in range(BATCHES):
        with family(nursery, "sink", "60", transport) as children:
            ready_sinks(children)
            tickets = lend_all(lender)
            let_all_fetch(children, tickets)
            killed_s = kill_each(children, random.Random(f"sink {transport} {batch}"), within_s)
        back_to(at_rest)  # the source has seen every death; only unasked leases may be left
        for lease, ticket in enumerate(tickets):
            asked = check_lent(lender, ends, ticket, killed_s[lease // LEASES_EACH])
            num_broken += asked and ends.told[ticket.lease].reason != "released"
        assert lender.source.num_leases == 0 and not ends.twice
        assert bytes(lender.memory.blocks) == pool
    assert num_broken, "nobody died in time to be missed"
    lender.close()


# -- an end that hangs --------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_source_that_hangs_is_given_up(nursery: Nursery, transport: str) -> None:
    with closing(nursery.child("unfinished source", "60")) as child:
        stopped = threading.Event()

        def stop(slot: memoryview) -> None:
            if not stopped.is_set():
                os.kill(child.pid, signal.SIGSTOP)
                stopped.set()
                eventually(lambda: _state(child.pid) == "T")

        borrower = Borrower(
            layout=LAYOUT, num_blocks=NUM_BLOCKS, transports=(transport,), lease_ttl_s=0.3,
            tamper=stop,
        )  # fmt: skip
        end = fetch(borrower, unpack(child.hear()), whole(0)).end
        assert isinstance(end, Lost) and isinstance(end.error, PeerLost)
        borrower.close()
        child.kill()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sink_that_hangs_loses_its_lease_and_learns_it_when_it_wakes(
    nursery: Nursery, transport: str
) -> None:
    lender = Lender(layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=0.3)
    with closing(nursery.child("sink", "0.3", transport, "0")) as child:
        assert child.hear() == "ready"
        ticket = lender.lend(whole(0))
        lender.source.publish(ticket.lease, LAYOUT.block_tokens)
        child.say(pack(ticket))
        assert child.hear() == "fetching"
        eventually(lambda: lender.sent(ticket.lease) == 1)
        os.kill(child.pid, signal.SIGSTOP)
        try:
            end = lender.end_of(ticket.lease)
        except queue.Empty:
            pytest.fail("the lease of a hanging sink never ended")
        assert (end.reason, end.transport) == ("expired", transport)
        os.kill(child.pid, signal.SIGCONT)
        assert child.hear() == "Lost"
    lender.close()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
