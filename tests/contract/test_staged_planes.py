"""Device pools over planes of hosts: late devices, full staging, unlike pools, streams that end.

What every plane must do is in test_transport.py, what every plane of devices must do in
test_device_planes.py; both run over these too.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import msgspec
import pytest
from support.device import FakeDeviceMemory
from support.eventually import eventually
from support.fake_driver import FakeStream
from support.middle import Middle, NoHarm
from support.outcomes import lands, same_bytes
from support.transfer import LAYOUT, Borrower, Lender, Outcome, Slot

from kvtransfer.endings import Aborted, Landed, Lost
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.staging import Staging
from kvtransfer.sum_kinds import XXH3
from kvtransfer.transports.staged import gathers
from protocol.errors import TransferError
from protocol.layout import KvLayout, transfer_compat


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lender]:
    """On a device."""
    monkeypatch.setattr(Lender, "on_device", True)
    with closing(Lender(transports=("shm", "tcp"))) as lender:
        yield lender


@pytest.fixture
def borrower(transport: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Borrower]:
    """On another."""
    monkeypatch.setattr(Borrower, "on_device", True)
    with closing(Borrower(transports=(transport,), allow_fallback=False)) as borrower:
        yield borrower


def pool(end: Lender | Borrower) -> FakeDeviceMemory:
    assert isinstance(end.memory, FakeDeviceMemory)
    return end.memory


@contextmanager
def late(memory: FakeDeviceMemory) -> Iterator[None]:
    """Nothing of our streams happens but sums, which have the pool's own, the first."""
    with ExitStack() as holds:
        for handle, stream in sorted(memory.fake.streams.items()):
            if handle > 1:
                holds.enter_context(stream.held())
        yield


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome.end, Lost), outcome.end
    return str(outcome.end.error)


def test_a_source_whose_device_is_late_costs_the_fetch_alone_and_no_slot(
    lender: Lender, borrower: Borrower
) -> None:
    assert lands(lender, borrower)
    ticket = lender.lend([0])
    with late(pool(lender)):
        outcome = borrower.fetch(ticket, [Slot(0, 0)], deadline_s=0.3)
        lender.write_all(ticket)
        assert "not landed within" in reason(outcome)
        assert isinstance(outcome.end, Lost) and outcome.end.quarantined == ()
    eventually(lambda: lender.source.num_leases == 0)
    assert lands(lender, borrower)


def test_a_source_whose_device_hangs_is_met_again_over_another_stream(
    lender: Lender, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lands(lender, borrower)
    monkeypatch.setattr(gathers, "PATIENCE_S", 0.05)
    ticket = lender.lend([0])
    with late(pool(lender)):
        outcome = borrower.fetch(ticket, [Slot(0, 0)])
        lender.write_all(ticket)
        assert isinstance(outcome.end, Landed)
        assert pool(lender).staging.used_bytes > pool(borrower).staging.used_bytes  # of both
    assert same_bytes(lender, borrower, [0])
    lender.close()
    assert pool(lender).staging.used_bytes == 0


def test_a_late_sinks_slots_are_quarantined_and_its_staging_is_kept(
    lender: Lender, borrower: Borrower
) -> None:
    assert lands(lender, borrower)
    before = pool(borrower).staging.used_bytes
    ticket, stream = lender.lend([0, 1]), pool(borrower).fake.streams[2]
    with stream.held():
        outcome = borrower.fetch(ticket, [Slot(0, 7), Slot(1, 8)])
        lender.write_all(ticket)
        eventually(lambda: stream.num_waiting)
        lender.source.close()
        assert isinstance(outcome.end, Lost) and outcome.end.quarantined == (7, 8)
        assert pool(borrower).staging.used_bytes == before
    eventually(lambda: sorted(borrower.quiet) == [7, 8])
    eventually(lambda: pool(borrower).staging.used_bytes == 0)


def test_more_chunks_than_spans_wait_for_the_device_and_all_land(
    lender: Lender, borrower: Borrower
) -> None:
    assert lands(lender, borrower)
    stream = pool(borrower).fake.streams[2]
    tickets = [lender.lend([block]) for block in range(16)]
    with stream.held():
        outcomes = [borrower.fetch(t, [Slot(0, block)]) for block, t in enumerate(tickets)]
        for ticket in tickets:
            lender.write_all(ticket)
        eventually(lambda: stream.num_waiting == 4 * 4)  # upload, mark, scatter, mark: of 4 spans
        borrower.sink.cancel(outcomes[15].fetch)  # heard while all spans are taken
        assert isinstance(outcomes[15].end, Aborted)
    assert all(isinstance(outcome.end, Landed) for outcome in outcomes[:15])
    assert same_bytes(lender, borrower, range(15))


def test_a_link_beyond_the_bound_of_staging_is_refused_with_the_reason(
    lender: Lender, borrower: Borrower
) -> None:
    for memory in (pool(lender), pool(borrower)):
        memory.staging = Staging(memory.fake, most_bytes=0)
        assert "staging" in reason(borrower.fetch(lender.lend([0]), [Slot(0, 0)]))
        memory.staging = Staging(memory.fake)
    assert lands(lender, borrower)


def test_memory_that_cannot_be_page_locked_is_said_and_a_later_link_works(
    lender: Lender, borrower: Borrower
) -> None:
    fake = pool(lender).fake
    fake.room_bytes = 0
    assert "cannot be page-locked" in reason(borrower.fetch(lender.lend([0]), [Slot(0, 0)]))
    assert not fake.registered and pool(lender).staging.used_bytes == 0
    fake.room_bytes = 1 << 40
    assert lands(lender, borrower)


def test_a_device_that_gives_no_stream_costs_the_link_and_the_source_lives_on(
    lender: Lender, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> FakeStream:
        raise TransferError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pool(lender).fake, "stream", refuse)
        assert isinstance(borrower.fetch(lender.lend([0]), [Slot(0, 0)]).end, Lost)
        eventually(lambda: pool(lender).staging.used_bytes == 0)
    assert lands(lender, borrower)


def test_streams_that_come_and_go_leave_nothing_behind(lender: Lender, transport: str) -> None:
    num_fds = 0
    for turn in range(6):
        with closing(Borrower(transports=(transport,))) as passing:
            assert lands(lender, passing)
        eventually(lambda: pool(lender).staging.used_bytes == 0)
        assert not pool(lender).fake.registered and pool(lender).fake.num_spans == 1
        if turn == 0:
            num_fds = num_open()
    eventually(lambda: num_open() <= num_fds)  # the first one's may close a little later


def num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_stream_that_breaks_goes_on_by_another_plane(
    lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksums are of the same kind, and what had landed stays."""
    with closing(Middle(NoHarm())) as middle, closing(Borrower()) as borrower:
        ticket = middle.lead(lender.lend(range(8)))
        outcome = borrower.fetch(ticket, [Slot(block, block) for block in range(8)])
        lender.source.publish(ticket.lease, ticket.num_tokens // 2)
        eventually(lambda: same_bytes(lender, borrower, range(4)))
        monkeypatch.setattr(Staging, "open_ring", failing_once(Staging.open_ring))
        middle.break_streams()
        lender.write_all(ticket)
        assert isinstance(outcome.end, Landed), outcome.end
        assert outcome.end.transport == "tcp" and "staging: none now" in outcome.end.transport_why
        assert same_bytes(lender, borrower, range(8))


def failing_once(open_ring: object) -> object:
    failures = [True]

    def fail_first(self: Staging, *, span_bytes: int) -> object:
        if failures:
            failures.clear()
            raise TransferError("staging: none now")
        return open_ring(self, span_bytes=span_bytes)  # type: ignore[operator]

    return fail_first


@pytest.mark.parametrize("places", ["device-host", "host-device"])
@pytest.mark.parametrize("block_tokens", [2, 8])
def test_blocks_of_another_size_are_cut_and_joined(
    transport: str, places: str, block_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, sink = places.partition("-")
    monkeypatch.setattr(Lender, "on_device", source == "device")
    monkeypatch.setattr(Borrower, "on_device", sink == "device")
    other = msgspec.structs.replace(LAYOUT, block_tokens=block_tokens)
    compat = transfer_compat(LAYOUT, model_revision="tiny")
    with (
        closing(Lender(transports=("shm", "tcp"), compat=compat)) as lender,
        closing(Borrower(transports=(transport,), layout=other, compat=compat)) as borrower,
    ):
        ticket = lender.lend(range(4))
        num_slots = 16 // block_tokens
        outcome = borrower.fetch(ticket, [Slot(slot, slot) for slot in range(num_slots)])
        lender.write_all(ticket)
        assert isinstance(outcome.end, Landed), outcome.end
        assert by_token(lender, 4) == by_token(borrower, num_slots)


def by_token(end: Lender | Borrower, num_blocks: int) -> list[bytes]:
    """What each head of each layer has of all tokens, whatever a block's size."""
    layout = end.layout
    assert isinstance(layout, KvLayout)
    run = layout.block_tokens * layout.head_dim * 4
    blocks = [bytes(end.memory.block(block)) for block in range(num_blocks)]
    return [
        b"".join(block[start : start + run] for block in blocks)
        for start in range(0, layout.block_bytes, run)
    ]


def test_pools_without_a_checksum_in_common_are_refused_with_both_named(
    transport: str, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockMemory, "sum_kinds", (XXH3,))
    with closing(Borrower(transports=(transport,))) as borrower:
        why = reason(borrower.fetch(lender.lend([0]), [Slot(0, 0)]))
    assert "no checksum in common: the source's are splitmix64-sum, ours xxh3" in why


def test_pieces_that_a_device_cannot_sum_are_refused_and_the_source_lives_on(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of one head has 4 bytes here: two of them are no 16."""
    monkeypatch.setattr(Lender, "on_device", True)
    small = KvLayout(num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=2, dtype="float16")
    large = msgspec.structs.replace(small, block_tokens=4)
    compat = transfer_compat(small, model_revision="tiny")
    with (
        closing(Lender(transports=("shm", "tcp"), layout=small, compat=compat)) as lender,
        closing(Borrower(transports=(transport,), layout=large, compat=compat)) as borrower,
        closing(Borrower(transports=(transport,), layout=small, compat=compat)) as alike,
    ):
        assert "no multiples of 16 bytes" in reason(
            borrower.fetch(lender.lend([0, 1]), [Slot(0, 0)])
        )
        assert lands(lender, alike)


def test_a_host_and_a_device_take_the_same_sum_of_the_same_bytes(lender: Lender) -> None:
    assert isinstance(lender.memory, DeviceMemory)
    with closing(Borrower()) as borrower:
        assert lands(lender, borrower)
        ticket = lender.lend([0])
        pool(lender).block(0)[:] = bytes(pool(lender).block_bytes)
        lender.write_all(ticket)
        assert isinstance(borrower.fetch(ticket, [Slot(0, 0)]).end, Landed)
