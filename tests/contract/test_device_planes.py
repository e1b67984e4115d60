"""What only the device planes must do: wait for events, hold slots, make communicators again."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.device import FakeDeviceMemory
from support.eventually import eventually
from support.fake_driver import FakeStream
from support.transfer import Borrower, Lender, Outcome, Slot

from kvtransfer.endings import Aborted, Landed, Lost
from kvtransfer.transport_names import DEVICE_TRANSPORTS
from kvtransfer.transports.nccl.pair import MAX_GROUP
from kvtransfer.transports.nccl.source import NcclSourceStream
from protocol.errors import LayoutMismatch


@pytest.fixture(autouse=True)
def on_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for end in (Lender, Borrower):
        monkeypatch.setattr(end, "on_device", True)


@pytest.fixture(params=DEVICE_TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender(transports=DEVICE_TRANSPORTS)
    yield lender
    lender.close()


@pytest.fixture
def borrower(transport: str) -> Iterator[Borrower]:
    borrower = Borrower(transports=(transport,), allow_fallback=False)
    yield borrower
    borrower.close()


def pool(end: Lender | Borrower) -> FakeDeviceMemory:
    assert isinstance(end.memory, FakeDeviceMemory)
    return end.memory


def landed(outcome: Outcome) -> Landed:
    assert isinstance(outcome.end, Landed), outcome.end
    return outcome.end


@contextmanager
def held_but_for_sums(memory: FakeDeviceMemory) -> Iterator[None]:
    """No copy of ours happens; sums do, which have the pool's own stream, the first."""
    with ExitStack() as holds:
        for handle, stream in sorted(memory.fake.streams.items()):
            if handle > 1:
                holds.enter_context(stream.held())
        yield


def meet(lender: Lender, borrower: Borrower) -> None:
    """Land a block, so that a stream is open."""
    ticket = lender.lend([63])
    lender.write_all(ticket)
    landed(borrower.fetch(ticket, [Slot(0, 63)]))
    lender.end_of(ticket.lease)


def heard_everything(lender: Lender) -> None:
    """The source has taken in what was said to it before this."""
    ticket = lender.lend([62])
    lender.source.fail(ticket.lease, "only to see")
    lender.end_of(ticket.lease)


def test_a_block_is_not_sent_before_its_event_has_happened(
    lender: Lender, borrower: Borrower
) -> None:
    memory, ticket = pool(lender), lender.lend([0, 1])
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
    lender.source.publish(ticket.lease, 4)
    eventually(lambda: borrower.memory.block(0) == memory.block(0))
    with memory.fake.engine.held():
        memory.write(1, b"computed late..." * (memory.block_bytes // 16))
        lender.write_all(ticket)
        heard_everything(lender)
        assert lender.sent(ticket.lease) == 1 and not outcome.ended
    landed(outcome)
    assert bytes(borrower.memory.block(1)[:16]) == b"computed late..."
    assert borrower.memory.block(1) == memory.block(1)


def test_what_the_caller_has_awaited_is_sent_whatever_its_stream_does_next(
    lender: Lender, borrower: Borrower
) -> None:
    memory, ticket = pool(lender), lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    with memory.fake.engine.held():
        memory.mark()  # the next step, launched and not done
        lender.source.publish(ticket.lease, 4, awaited=True)
        lender.source.finish(ticket.lease, b"note", awaited=True)
        assert landed(outcome).note == b"note"
    assert borrower.memory.block(0) == memory.block(0)


def test_a_lease_can_end_while_its_event_is_awaited(lender: Lender, borrower: Borrower) -> None:
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    with pool(lender).fake.engine.held():
        pool(lender).write(0, bytes(pool(lender).block_bytes))
        lender.write_all(ticket)
        lender.source.fail(ticket.lease, "preempted")
        assert isinstance(outcome.end, Lost) and "preempted" in str(outcome.end.error)
    heard_everything_after(lender, ticket.lease)


def heard_everything_after(lender: Lender, lease: int) -> None:
    assert lender.ends.get(timeout=10.0).lease == lease
    heard_everything(lender)
    assert lender.source.num_leases == 0


def writing(memory: FakeDeviceMemory) -> FakeStream:
    """The stream whose work writes into slots: the first a data plane made."""
    return memory.fake.streams[2]


def test_slots_of_a_copy_under_way_are_quarantined_until_it_has_happened(
    lender: Lender, borrower: Borrower
) -> None:
    meet(lender, borrower)
    ticket, stream = lender.lend([0, 1]), writing(pool(borrower))
    with stream.held():
        outcome = borrower.fetch(ticket, [Slot(0, 7), Slot(1, 8)])
        lender.write_all(ticket)
        eventually(lambda: stream.num_waiting)
        borrower.sink.cancel(outcome.fetch, reason="client gone")
        assert outcome.end == Aborted("client gone", quarantined=(7, 8))
        assert borrower.quiet == []
    eventually(lambda: sorted(borrower.quiet) == [7, 8])
    lender.end_of(ticket.lease)
    meet(lender, borrower)


def test_a_closing_sink_waits_a_moment_for_its_copies(lender: Lender, borrower: Borrower) -> None:
    meet(lender, borrower)
    ticket, stream = lender.lend([0]), writing(pool(borrower))
    closing = threading.Thread(target=borrower.sink.close)
    with stream.held():
        outcome = borrower.fetch(ticket, [Slot(0, 0)])
        lender.write_all(ticket)
        eventually(lambda: stream.num_waiting)
        closing.start()
        assert outcome.end == Aborted("the sink closes", quarantined=(0,))
    closing.join(timeout=10.0)
    assert not stream.num_waiting and not closing.is_alive()


def test_nothing_stays_mapped_or_allocated(transport: str) -> None:
    lender, borrower = Lender(transports=DEVICE_TRANSPORTS), Borrower(transports=(transport,))
    ends = (pool(lender), pool(borrower))
    meet(lender, borrower)
    borrower.close()
    lender.close()
    for end in ends:
        eventually(lambda end=end: end.fake.num_spans == 0)  # type: ignore[misc]
        assert end.fake.registered == {} and end.staging.used_bytes == 0


def test_many_fetches_with_a_fifth_broken_off_leave_nothing_behind(
    lender: Lender, borrower: Borrower
) -> None:
    meet(lender, borrower)
    before = used(lender, borrower)
    for turn in range(60):
        ticket = lender.lend([turn % 60, 61])
        outcome = borrower.fetch(ticket, [Slot(0, turn % 60), Slot(1, 61)])
        lender.write_all(ticket)
        if turn % 5 == 0:
            borrower.sink.cancel(outcome.fetch, reason="client gone")
        assert isinstance(outcome.end, Landed | Aborted)
        lender.end_of(ticket.lease)
    eventually(lambda: used(lender, borrower) == before)
    meet(lender, borrower)


def used(lender: Lender, borrower: Borrower) -> tuple[int, int, int, int]:
    """Descriptors, device spans of both, leases."""
    spans = (pool(lender).fake.num_spans, pool(borrower).fake.num_spans)
    return (len(os.listdir("/proc/self/fd")), *spans, lender.source.num_leases)


def test_a_gpu_that_cannot_be_mapped_is_reached_by_nccl_and_says_why(lender: Lender) -> None:
    borrower = Borrower(transports=DEVICE_TRANSPORTS)
    pool(borrower).fake.why_no_peer = "GPU 1 has no peer access to GPU 0"
    ticket = lender.lend([0])
    lender.write_all(ticket)
    end = landed(borrower.fetch(ticket, [Slot(0, 0)]))
    assert end.transport == "nccl"
    assert "not cuda_ipc: GPU 1 has no peer access to GPU 0" in end.transport_why
    borrower.close()


def test_a_plane_through_host_memory_is_taken_only_where_no_direct_one_reaches(
    lender: Lender,
) -> None:
    borrower = Borrower(transports=DEVICE_TRANSPORTS)
    pool(borrower).fake.why_no_peer = "another host"
    pool(borrower).fake_collectives.version = "2.18.1"
    ticket = lender.lend([0])
    lender.write_all(ticket)
    end = landed(borrower.fetch(ticket, [Slot(0, 0)]))
    assert end.transport == "shm"
    assert "not cuda_ipc: another host" in end.transport_why and "not nccl" in end.transport_why
    borrower.close()


class TestNccl:
    @pytest.fixture
    def transport(self) -> str:
        return "nccl"

    def test_a_chunk_is_one_copy_at_each_end_and_two_may_be_one_launch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A GiB is 32 chunks: at most 32 launches of the library, where 4 MiB each made 256."""
        assert NcclSourceStream.chunk_bytes == 32 << 20 and MAX_GROUP == 2
        monkeypatch.setattr(NcclSourceStream, "chunk_bytes", 4 << 10)
        lender, borrower = Lender(transports=("nccl",)), Borrower(transports=("nccl",))
        ticket = lender.lend(range(60))  # of 1 KiB
        lender.write_all(ticket)
        landed(borrower.fetch(ticket, [Slot(block, block) for block in range(60)]))
        assert borrower.memory.block(59) == lender.memory.block(59)
        for end in (lender, borrower):
            (made,) = pool(end).fake_collectives.made
            assert 8 <= made.num_groups <= 15 and pool(end).fake.num_copies == 15
        assert pool(lender).fake.num_sums == 1
        borrower.close()
        lender.close()

    def test_no_communicator_is_made_before_there_is_something_to_send(
        self, lender: Lender, borrower: Borrower
    ) -> None:
        ticket = lender.lend([0])
        outcome = borrower.fetch(ticket, [Slot(0, 0)])
        lender.source.publish(ticket.lease, 0)
        heard_everything(lender)
        assert pool(borrower).fake_collectives.made == []
        lender.write_all(ticket)
        landed(outcome)
        assert len(pool(borrower).fake_collectives.made) == 1

    def test_a_communicator_that_fails_is_made_again_and_the_fetch_lands(
        self, lender: Lender, borrower: Borrower
    ) -> None:
        meet(lender, borrower)
        ticket = lender.lend([0, 1])
        outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
        lender.source.publish(ticket.lease, 4)
        eventually(lambda: borrower.memory.block(0) == lender.memory.block(0))
        pool(borrower).fake_collectives.made[-1].fail("remote error")
        lender.write_all(ticket)
        landed(outcome)
        assert borrower.memory.block(1) == lender.memory.block(1)
        assert len(pool(borrower).fake_collectives.made) == 2
        assert pool(borrower).fake_collectives.made[0].aborted
        eventually(lambda: pool(lender).fake_collectives.made[0].aborted)

    def test_a_sender_that_hangs_keeps_no_slot(self, lender: Lender, borrower: Borrower) -> None:
        meet(lender, borrower)
        ticket = lender.lend([0])
        receiving = pool(borrower).fake.streams[3]
        with held_but_for_sums(pool(lender)):
            outcome = borrower.fetch(ticket, [Slot(0, 0)])
            lender.write_all(ticket)
            eventually(lambda: receiving.num_waiting)
            borrower.sink.cancel(outcome.fetch, reason="client gone")
            assert outcome.end == Aborted("client gone")
        lender.end_of(ticket.lease)
        meet(lender, borrower)

    def test_a_sender_that_hangs_for_too_long_is_met_again(self, lender: Lender) -> None:
        borrower = Borrower(transports=("nccl",), allow_fallback=False)
        pool(borrower).fake_collectives.patience_s = 0.2
        meet(lender, borrower)
        ticket = lender.lend([0])
        with held_but_for_sums(pool(lender)):
            outcome = borrower.fetch(ticket, [Slot(0, 0)])
            lender.write_all(ticket)
            eventually(lambda: pool(borrower).fake_collectives.made[0].aborted)
        landed(outcome)
        assert borrower.memory.block(0) == lender.memory.block(0)
        borrower.close()

    def test_two_libraries_of_other_versions_are_no_pair(self, lender: Lender) -> None:
        borrower = Borrower(transports=("nccl",), allow_fallback=False)
        pool(borrower).fake_collectives.version = "2.18.1"
        ticket = lender.lend([0])
        outcome = borrower.fetch(ticket, [Slot(0, 0)])
        assert isinstance(outcome.end, Lost)
        assert isinstance(outcome.end.error, LayoutMismatch) or "library" in str(outcome.end.error)
        borrower.close()
