"""What the ucx plane adds to the contract of all: how it is refused, met, broken and left."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.census import back_to, settled
from support.eventually import eventually
from support.fetching import fetch
from support.nursery import Nursery
from support.transfer import Borrower, Lender
from support.transfer_process import LAYOUT, LEASE_BLOCKS, NUM_LEASES, unpack, whole
from support.ucx import needs_ucx
from support.ucx_peer import LENGTH, NoTaker, dialled, hello_from, met, readable, welcome

from kvtransfer.endings import Aborted, Landed, Lost
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transports.base import Unreachable
from kvtransfer.transports.ucx.messages import Sending, ucx_to_sink
from kvtransfer.transports.ucx.session import why_not
from protocol.errors import PeerLost, WireError
from tools.python_path import python_path

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def memory() -> Iterator[BlockMemory]:
    memory = BlockMemory.create(num_blocks=8, block_bytes=4096)
    yield memory
    memory.close()


@pytest.mark.skipif(not why_not(), reason="UCX is of use here")
def test_a_host_without_ucx_takes_the_next_plane_and_says_why() -> None:
    lender, borrower = Lender(), Borrower(transports=("ucx", "tcp"))
    ticket = lender.lend([0])
    lender.write_all(ticket)
    end = fetch(borrower, ticket, [0]).end
    assert isinstance(end, Landed) and end.transport == "tcp"
    assert f"not ucx: {why_not()}" in end.transport_why
    borrower.close()
    lender.close()


@pytest.mark.skipif(not why_not(), reason="UCX is of use here")
def test_a_host_without_ucx_refuses_when_it_may_not_fall_back() -> None:
    lender, borrower = Lender(), Borrower(transports=("ucx", "tcp"), allow_fallback=False)
    end = fetch(borrower, lender.lend([0]), [0]).end
    assert isinstance(end, Lost) and why_not() in str(end.error)
    borrower.close()
    lender.close()


@needs_ucx
def test_transports_of_ucx_that_cannot_tell_a_dead_peer_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCX_TLS", "posix,self")
    monkeypatch.delenv("UCX_MM_ERROR_HANDLING", raising=False)
    lender, borrower = Lender(), Borrower(transports=("ucx", "tcp"))
    ticket = lender.lend([0])
    lender.write_all(ticket)
    end = fetch(borrower, ticket, [0]).end
    assert isinstance(end, Landed) and end.transport == "tcp" and "not ucx" in end.transport_why
    borrower.close()
    lender.close()


def cancel_one(lender: Lender, borrower: Borrower) -> None:
    """Fetch a lease, cancel when it is under way, and wait until its slots have no writer."""
    ticket = lender.lend(range(LEASE_BLOCKS))
    lender.write_all(ticket)
    outcome = fetch(borrower, ticket, range(LEASE_BLOCKS))
    eventually(lambda: outcome.ended or lender.sent(ticket.lease))
    borrower.sink.cancel(outcome.fetch, reason="enough")
    end = outcome.end
    assert isinstance(end, Aborted | Landed)
    if isinstance(end, Aborted):
        eventually(lambda: set(end.quarantined) <= set(borrower.quiet))
    borrower.quiet.clear()
    lender.end_of(ticket.lease)


@needs_ucx
def test_a_fetch_cancelled_in_mid_chunk_frees_its_slots_and_writes_no_more() -> None:
    lender, borrower = (
        Lender(layout=LAYOUT, num_blocks=LEASE_BLOCKS),
        Borrower(layout=LAYOUT, num_blocks=LEASE_BLOCKS, transports=("ucx",)),
    )
    for _ in range(20):
        cancel_one(lender, borrower)
    ticket = lender.lend(range(LEASE_BLOCKS))
    lender.write_all(ticket)
    assert isinstance(fetch(borrower, ticket, range(LEASE_BLOCKS)).end, Landed)
    assert borrower.memory.blocks == lender.memory.blocks
    borrower.close()
    lender.close()


@needs_ucx
def test_a_pair_is_made_again_after_its_source_was_killed() -> None:
    borrower = Borrower(layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS, transports=("ucx",))
    with closing(Nursery()) as nursery:
        at_rest = None
        for lease in range(4):
            with closing(nursery.child("source", "60", str(lease))) as child:
                end = fetch(borrower, unpack(child.hear()), whole(lease)).end
                assert isinstance(end, Landed) and end.transport == "ucx"
                child.kill()
            if at_rest is None:
                at_rest = settled()
            back_to(at_rest)
    borrower.close()


@needs_ucx
def test_an_open_stream_that_is_idle_costs_no_cpu() -> None:
    lender, borrower = Lender(), Borrower(transports=("ucx",))
    held, ticket = lender.lend([1]), lender.lend([0])
    borrower.sink.hold(held)
    lender.write_all(ticket)
    assert isinstance(fetch(borrower, ticket, [0]).end, Landed)
    before_s = time.process_time()
    threading.Event().wait(1.0)
    assert time.process_time() - before_s < 0.1
    borrower.close()
    lender.close()


@needs_ucx
def test_a_truncated_announcement_ends_the_stream(memory: BlockMemory) -> None:
    with met(memory) as (stream, theirs):
        theirs.sendall(LENGTH.pack(100) + b"half of it")
        readable(stream.fileno())
        stream.receive(NoTaker())
        theirs.close()
        readable(stream.fileno())
        with pytest.raises(PeerLost):
            stream.receive(NoTaker())


@needs_ucx
@pytest.mark.parametrize(
    "word",
    [b"\xc1", ucx_to_sink.encode(Sending(number=3, whole=True)), b"\x83\xa4type\x63"],
    ids=["no word", "sent unasked", "unknown"],
)
def test_a_word_that_makes_no_sense_ends_the_stream(memory: BlockMemory, word: bytes) -> None:
    with met(memory) as (stream, theirs):
        theirs.sendall(LENGTH.pack(len(word)) + word)
        readable(stream.fileno())
        with pytest.raises(WireError):
            stream.receive(NoTaker())


@needs_ucx
@pytest.mark.parametrize("address", [b"", b"no address" * 9, bytes(8)])
def test_a_welcome_without_an_address_of_ucx_is_unreachable(
    memory: BlockMemory, address: bytes
) -> None:
    """UCX itself ends the process over such an address."""
    with dialled(memory) as (dial, theirs):
        hello_from(dial, theirs)
        welcome(theirs, address=address)
        with pytest.raises(Unreachable, match="no address of UCX"):
            while dial.advance() is None:
                readable(dial.fileno())
        dial.close()


@needs_ucx
def test_a_source_that_goes_before_the_first_byte_is_unreachable(memory: BlockMemory) -> None:
    with dialled(memory) as (dial, theirs):
        hello_from(dial, theirs)
        theirs.shutdown(socket.SHUT_RDWR)
        with pytest.raises(Unreachable):
            while dial.advance() is None:
                readable(dial.fileno())
        dial.close()


_EXITS = """
import sys
from support.fetching import fetch
from support.transfer import Borrower, Lender
lender, borrower = Lender(), Borrower(transports=("ucx",))
ticket, unfinished = lender.lend([0]), lender.lend([1, 2])
lender.write_all(ticket)
print(type(fetch(borrower, ticket, [0]).end).__name__)
fetch(borrower, unfinished, [1, 2])
if "closed" in sys.argv:
    borrower.close()
    lender.close()
"""


@needs_ucx
@pytest.mark.parametrize("how", ["closed", "left open"])
def test_the_process_exits_without_a_signal(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EXITS, how], capture_output=True, text=True, timeout=60.0, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(ROOT, ROOT / "tests")},
    )  # fmt: skip
    assert (done.returncode, "Landed" in done.stdout) == (0, True), done.stderr
