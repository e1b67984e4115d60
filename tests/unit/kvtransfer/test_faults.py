"""What our own faults and a full descriptor table do to a source and a sink."""

import errno
import queue
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import ModuleType

import numpy as np
import pytest
import zmq
from support.eventually import eventually
from support.pieces import chunk, pieces
from support.sink_means import sink_means
from support.transfer import COMPAT, LAYOUT, WITHIN_S, Borrower, Lender, Slot

from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import MAX_RENEWED, FetchId
from kvtransfer.plan import plan
from kvtransfer.sink.fetch import Fetch, FetchStep
from kvtransfer.sink.fetches import FetchTable
from kvtransfer.sink.link import Link
from kvtransfer.sink.running_fetch import RunningFetch
from kvtransfer.source.leases import LeaseTable
from kvtransfer.source.sinks import PAUSE_S
from kvtransfer.transports.base import ChunkTaker
from kvtransfer.transports.control import Poller
from kvtransfer.transports.polling import FdPoller
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.tcp import sink as tcp_sink
from kvtransfer.transports.tcp import source as tcp_source
from kvtransfer.transports.tcp_socket import TcpPort
from protocol.errors import CapacityError
from protocol.messages import Ticket

FULL = OSError(errno.EMFILE, "Too many open files")


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.close()


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    borrower = Borrower()
    yield borrower
    borrower.close()


def fetch_end(lender: Lender, borrower: Borrower) -> FetchEnd:
    ticket = lender.lend([0])
    lender.write_all(ticket)
    return borrower.fetch(ticket, [Slot(0, 0)]).end


def test_a_sink_that_breaks_says_so_and_ends_its_fetches(
    lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[str] = queue.Queue()
    borrower = Borrower(on_broken=told.put)

    def run_turn(fetches: FetchTable, ready: set[int]) -> None:
        raise RuntimeError("a slip")

    monkeypatch.setattr(FetchTable, "run_turn", run_turn)
    outcome = borrower.fetch(lender.lend([0]), [Slot(0, 0)])
    assert told.get(timeout=WITHIN_S) == "the kv sink is broken: a slip"
    assert isinstance(outcome.end, Aborted)
    borrower.close()


def test_a_source_that_breaks_says_so_and_ends_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    told: queue.Queue[str] = queue.Queue()
    lender = Lender(on_broken=told.put)

    def run_turn(leases: LeaseTable) -> None:
        raise RuntimeError("a slip")

    monkeypatch.setattr(LeaseTable, "run_turn", run_turn)
    ticket = lender.lend([0])
    assert told.get(timeout=WITHIN_S) == "the kv source is broken: a slip"
    assert lender.end_of(ticket.lease).reason == "closed"
    with pytest.raises(CapacityError):
        eventually(lambda: lender.lend([0]) is None)
    lender.close()


def test_no_socket_for_a_control_link_loses_one_fetch(
    lender: Lender, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for name in ("socket", "get_monitor_socket"):

            def fail(*_: object) -> None:
                raise zmq.ZMQError(errno.EMFILE)

            patched.setattr(zmq.Context if name == "socket" else zmq.Socket, name, fail)
            end = fetch_end(lender, borrower)
            assert isinstance(end, Lost) and "no socket for a control link" in str(end.error)
            borrower.sink.hold(lender.lend([1]))
            patched.undo()
    assert isinstance(fetch_end(lender, borrower), Landed)


def test_no_socket_for_a_stream_loses_one_fetch(
    lender: Lender, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", fail)
        end = fetch_end(lender, borrower)
    assert isinstance(end, Lost)
    assert "not shm: [Errno 24]" in str(end.error) and "not tcp: [Errno 24]" in str(end.error)
    assert isinstance(fetch_end(lender, borrower), Landed)


def test_no_descriptor_to_give_away_turns_one_sink_to_tcp(
    lender: Lender, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(memory: BlockMemory) -> int:
        raise FULL

    monkeypatch.setattr(BlockMemory, "reader_fd", fail)
    end = fetch_end(lender, borrower)
    assert isinstance(end, Landed) and end.transport == "tcp"


def test_no_descriptor_for_a_copy_job_has_the_sink_copy_alone(
    lender: Lender, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> CopyJob | None:
        raise FULL

    monkeypatch.setattr(CopyJob, "create", fail)
    end = fetch_end(lender, borrower)
    assert isinstance(end, Landed) and end.transport == "shm"


def test_a_full_table_of_descriptors_does_not_keep_a_source_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connections that are not accepted keep the listening socket readable."""
    looks: list[float] = []

    def full(port: TcpPort) -> socket.socket | None:
        looks.append(time.monotonic())
        raise FULL

    lender, borrower = Lender(transports=("tcp",)), Borrower(transports=("tcp",))
    with closing(lender), closing(borrower):
        with monkeypatch.context() as patched:
            patched.setattr(TcpPort, "accept", full)
            ticket = lender.lend([0])
            outcome = borrower.fetch(ticket, [Slot(0, 0)])
            eventually(lambda: len(looks) >= 3)
        assert looks[2] - looks[0] >= 2 * PAUSE_S
        lender.write_all(ticket)
        assert isinstance(outcome.end, Landed)


@pytest.mark.parametrize("side", [tcp_sink, tcp_source])
def test_no_descriptor_for_a_stream_that_is_up_loses_one_fetch(
    side: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    lender = Lender(transports=("tcp",), on_broken=told.append)
    borrower = Borrower(transports=("tcp",), on_broken=told.append)

    def full() -> FdPoller:
        raise FULL

    with closing(lender), closing(borrower):
        with monkeypatch.context() as patched:
            patched.setattr(side, "FdPoller", full)
            assert isinstance(fetch_end(lender, borrower), Lost)
        # Streams of the lost one may still be closing, on a busy machine.
        eventually(lambda: isinstance(fetch_end(lender, borrower), Landed), 30)
        assert not told


@pytest.fixture
def fetches(lender: Lender) -> Iterator[FetchTable]:
    memory = BlockMemory.create(num_blocks=4, block_bytes=LAYOUT.block_bytes)
    fetches = FetchTable(sink_means(memory, LAYOUT, compat=COMPAT), poller=Poller())
    yield fetches
    fetches.close()
    memory.close()


def test_a_fetch_with_two_writers_ends_once_when_it_is_cancelled(
    lender: Lender, fetches: FetchTable
) -> None:
    ends: list[FetchEnd] = []
    ticket = lender.lend([0, 1])
    due = [
        pieces([i], [i], block_tokens=LAYOUT.block_tokens, num_tokens=8, block_bytes=1)
        for i in (0, 1)
    ]
    fetch = Fetch(fetch_id=FetchId(1), lease_id=ticket.lease, pieces_S=np.concatenate(due))
    fetches.start_fetch(running_fetch(fetch, ticket, ends.append))
    fetch.start()
    for piece in due:
        assert fetch.begin_write(attempt=1, pieces_P=piece) is not None
    fetches.cancel_fetch(FetchId(1), "enough")
    (end,) = ends
    assert isinstance(end, Aborted) and end.reason == "enough"


def running_fetch(fetch: Fetch, ticket: Ticket, on_end: Callable[[FetchEnd], None]) -> RunningFetch:
    route = plan(LAYOUT, LAYOUT)
    return RunningFetch(fetch, ticket, route, on_end, started_s=0.0, deadline_s=9.0)


class Stuck:
    """A stream whose writer goes on for a while after it broke."""

    transport = "tcp"
    is_over = False
    num_closes = 0

    def close(self) -> bool:
        self.num_closes += 1
        return self.is_over


def test_a_writer_that_stops_late_ends_nothing_of_the_next_stream(
    lender: Lender, fetches: FetchTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, takers = Stuck(), list[ChunkTaker]()

    def receive_stream(link: Link, taker: ChunkTaker, ready: set[int]) -> Stuck | None:
        """The first stream breaks at once."""
        takers.append(taker)
        return stuck if len(takers) == 1 else None

    monkeypatch.setattr(Link, "receive_stream", receive_stream)
    monkeypatch.setattr(Link, "attach_again", lambda link: None)
    ticket = lender.lend([0])
    piece = pieces(
        [0], [0], block_tokens=LAYOUT.block_tokens, num_tokens=ticket.num_tokens,
        block_bytes=LAYOUT.block_bytes,
    )  # fmt: skip
    fetch = Fetch(fetch_id=FetchId(1), lease_id=ticket.lease, pieces_S=piece)
    fetches.start_fetch(running_fetch(fetch, ticket, print))
    for _ in range(2):
        fetches.run_turn(set())
    fetch.start()
    assert takers[1].begin_chunk(chunk(piece, [0])) is not None
    stuck.is_over = True
    fetches.run_turn(set())
    assert fetch.num_writing == 1
    num_closes = stuck.num_closes
    fetches.run_turn(set())
    assert stuck.num_closes == num_closes, "it is closed and still looked at"


def test_every_fetch_has_an_end_though_the_fault_spoilt_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lender, borrower = Lender(), Borrower()
    tickets = [lender.lend([block]) for block in range(3)]
    outcomes = [borrower.fetch(t, [Slot(0, i)]) for i, t in enumerate(tickets)]
    right = Fetch.cancel

    def slip(fetch: Fetch, reason: str) -> list[FetchStep]:
        if fetch.id == outcomes[0].fetch:
            raise RuntimeError("a slip")
        return right(fetch, reason)

    monkeypatch.setattr(Fetch, "cancel", slip)
    borrower.sink.close()
    assert [type(outcome.end) for outcome in outcomes] == [Aborted] * 3
    lender.close()
    borrower.memory.close()


def test_more_leases_than_one_message_takes_are_all_renewed() -> None:
    lender, borrower = Lender(lease_ttl_s=1.0), Borrower(lease_ttl_s=1.0)
    tickets = [lender.lend([0]) for _ in range(MAX_RENEWED + 5)]
    for ticket in tickets:
        borrower.sink.hold(ticket)
    outcome = borrower.fetch(tickets[-1], [Slot(0, 0)])
    lender.source.publish(tickets[-1].lease, tickets[-1].num_tokens)
    eventually(lambda: any(borrower.memory.block(0)))
    late_s = time.monotonic() + 1.5
    eventually(lambda: time.monotonic() > late_s)
    assert lender.source.num_leases == len(tickets) and not outcome.ended
    borrower.close()
    lender.close()
