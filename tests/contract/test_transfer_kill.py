"""Real processes, killed or stopped while blocks move: the other end always gets an end.

Leases are a minute long where a process is killed, so what ends them is not their term.
"""

import os
import queue
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.eventually import eventually
from support.transfer import Borrower, Lender, Outcome
from support.transfer_process import (
    LAYOUT,
    LEASE_BLOCKS,
    NUM_LEASES,
    pack,
    start,
    unpack,
    whole,
)

from kvtransfer.messages import Slot
from kvtransfer.sink import Landed, Lost
from protocol.errors import PeerLost

NUM_BLOCKS = NUM_LEASES * LEASE_BLOCKS
ENDED_WITHIN_S = 5.0
"""The aim is a second; this only bounds the test on a loaded machine."""
TRANSPORTS = ("shm", "tcp")

pytestmark = pytest.mark.system


@contextmanager
def process(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    child = start(*arguments)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def open_fds() -> set[str]:
    fds = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            fds.add(f"{fd.name} {os.readlink(fd)}")
        except FileNotFoundError:
            continue
    return fds


def fetch_all(borrower: Borrower, child: "subprocess.Popen[str]") -> list[Outcome]:
    assert child.stdout is not None
    tickets = [unpack(child.stdout.readline()) for _ in range(NUM_LEASES)]
    return [
        borrower.fetch(ticket, [Slot(i, block) for i, block in enumerate(whole(lease))])
        for lease, ticket in enumerate(tickets)
    ]


def kill_after(num_blocks: int, child: "subprocess.Popen[str]") -> Callable[[memoryview], None]:
    """A hook that kills the child when this many blocks have come."""
    left = [num_blocks]

    def hook(slot: memoryview) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(child.pid, signal.SIGKILL)

    return hook


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("round_", range(5))
def test_a_source_killed_anywhere_ends_every_fetch_and_leaves_no_wrong_byte(
    transport: str, round_: int
) -> None:
    num_landed = random.Random(f"{transport}{round_}").randrange(1, NUM_BLOCKS)
    truth = Lender(layout=LAYOUT, num_blocks=NUM_BLOCKS)
    before = open_fds()
    with process("source", "60") as child:
        borrower = Borrower(
            layout=LAYOUT, num_blocks=NUM_BLOCKS, transports=(transport,),
            tamper=kill_after(num_landed, child),
        )  # fmt: skip
        for lease, outcome in enumerate(fetch_all(borrower, child)):
            eventually(lambda outcome=outcome: outcome.ended, ENDED_WITHIN_S)  # type: ignore[misc]
            if isinstance(outcome.end, Landed):
                assert outcome.end.note == bytes([lease])
                for block in whole(lease):
                    assert borrower.memory.block(block) == truth.memory.block(block)
            else:
                assert isinstance(outcome.end, Lost) and isinstance(outcome.end.error, PeerLost)
        assert borrower.sink.num_fetches == 0
        borrower.close()
    assert open_fds() == before
    truth.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("round_", range(5))
def test_a_sink_killed_anywhere_ends_every_lease(transport: str, round_: int) -> None:
    chance = random.Random(f"{transport}{round_}")
    before = open_fds()
    lender = Lender(layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=60.0)
    with process("sink", transport, "60") as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        tickets = [lender.lend(whole(lease)) for lease in range(NUM_LEASES)]
        for ticket in tickets:
            child.stdin.write(pack(ticket) + "\n")
            child.stdin.flush()
            assert child.stdout.readline() == "fetching\n"
        for ticket in tickets:  # a lease nobody asked for yet would wait for its term
            lender.source.publish(ticket.lease, LAYOUT.block_tokens)
        eventually(lambda: all(lender.sent(ticket.lease) == 1 for ticket in tickets))
        for _ in range(chance.randrange(1, 40)):
            ticket = chance.choice(tickets)
            lender.source.publish(ticket.lease, chance.randrange(ticket.num_tokens))
        child.kill()
        ended = {lender.ends.get(timeout=ENDED_WITHIN_S).lease for _ in tickets}
        assert ended == {ticket.lease for ticket in tickets}
    assert lender.source.num_leases == 0
    lender.close()
    assert open_fds() == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_source_that_hangs_is_given_up(transport: str) -> None:
    with process("source", "60") as child:
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
        outcomes = fetch_all(borrower, child)
        ends = [outcome.end for outcome in outcomes]
        assert any(isinstance(end, Lost) and isinstance(end.error, PeerLost) for end in ends)
        borrower.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sink_that_hangs_loses_its_lease_and_learns_it_when_it_wakes(transport: str) -> None:
    lender = Lender(layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=0.3)
    with process("sink", transport, "0.3") as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        ticket = lender.lend(whole(0))
        lender.source.publish(ticket.lease, LAYOUT.block_tokens)
        child.stdin.write(pack(ticket) + "\n")
        child.stdin.flush()
        assert child.stdout.readline() == "fetching\n"
        eventually(lambda: lender.sent(ticket.lease) == 1)
        os.kill(child.pid, signal.SIGSTOP)
        try:
            end = lender.end_of(ticket.lease)
        except queue.Empty:
            pytest.fail("the lease of a hanging sink never ended")
        assert (end.reason, end.transport) == ("expired", transport)
        os.kill(child.pid, signal.SIGCONT)
        assert child.stdout.readline() == "Lost\n"
    lender.close()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
