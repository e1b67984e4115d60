"""Checksums that a device takes: in one launch, never waited for, and late for a lease alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.device import FakeDeviceMemory
from support.eventually import eventually
from support.transfer import Borrower, Lender, Outcome, Slot

from kvtransfer.endings import Landed, Lost
from kvtransfer.transport_names import DEVICE_TRANSPORTS
from protocol.layout import KvLayout

LATE_S = 0.2


@pytest.fixture
def broken() -> list[str]:
    """Why a source's thread ended by a fault, and the worker with it."""
    return []


@pytest.fixture
def lender(broken: list[str]) -> Iterator[Lender]:
    lender = Lender(transports=DEVICE_TRANSPORTS, on_broken=broken.append)
    yield lender
    lender.close()


@pytest.fixture(params=DEVICE_TRANSPORTS)
def borrower(request: pytest.FixtureRequest) -> Iterator[Borrower]:
    borrower = Borrower(transports=(request.param,), allow_fallback=False)
    yield borrower
    borrower.close()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that answers late is told so soon."""
    monkeypatch.setattr("kvtransfer.source.leases.SUM_S", LATE_S)


def device(end: Lender | Borrower) -> FakeDeviceMemory:
    assert isinstance(end.memory, FakeDeviceMemory)
    return end.memory


def landed(outcome: Outcome) -> Landed:
    assert isinstance(outcome.end, Landed), outcome.end
    return outcome.end


def heard_everything(lender: Lender) -> None:
    """The source has taken in what was said to it before this, and done a turn."""
    for _ in range(2):
        ticket = lender.lend([0])
        lender.source.fail(ticket.lease, "only to see")
        lender.end_of(ticket.lease)


def land(lender: Lender, borrower: Borrower, block: int) -> None:
    ticket = lender.lend([block])
    lender.write_all(ticket)
    landed(borrower.fetch(ticket, [Slot(0, block)]))
    assert lender.end_of(ticket.lease).reason == "released"
    assert borrower.memory.block(block) == lender.memory.block(block)


@pytest.mark.usefixtures("late")
def test_a_device_that_answers_late_fails_the_lease_and_not_the_worker(
    lender: Lender, borrower: Borrower, broken: list[str]
) -> None:
    land(lender, borrower, 63)
    ticket, sums = lender.lend([0]), device(lender).fake.streams[1]
    with sums.held():
        outcome = borrower.fetch(ticket, [Slot(0, 0)])
        lender.write_all(ticket)
        assert isinstance(outcome.end, Lost)
    assert "has not summed blocks" in str(outcome.end.error) and outcome.end.error.retryable
    assert lender.end_of(ticket.lease).reason == "failed"
    land(lender, borrower, 1)
    assert not broken


@pytest.mark.usefixtures("late")
def test_leases_whose_sums_are_there_go_on_beside_one_that_waits(
    lender: Lender, borrower: Borrower, broken: list[str]
) -> None:
    summed, ticket = lender.lend([5]), lender.lend([0])
    lender.write_all(summed)
    heard_everything(lender)
    with device(lender).fake.streams[1].held():
        slow = borrower.fetch(ticket, [Slot(0, 0)])
        lender.write_all(ticket)
        landed(borrower.fetch(summed, [Slot(0, 5)]))
        assert not slow.ended
        assert isinstance(slow.end, Lost)
    assert not broken


def test_renewals_and_new_leases_are_answered_while_sums_are_awaited(
    lender: Lender, borrower: Borrower
) -> None:
    land(lender, borrower, 63)
    ticket = lender.lend([0])
    with device(lender).fake.streams[1].held():
        outcome = borrower.fetch(ticket, [Slot(0, 0)])
        lender.write_all(ticket)
        eventually(lambda: device(lender).fake.streams[1].num_waiting)
        heard_everything(lender)
        assert not outcome.ended
    landed(outcome)


@pytest.mark.usefixtures("late")
def test_a_lease_that_failed_for_want_of_sums_is_fetched_under_another(
    lender: Lender, borrower: Borrower
) -> None:
    land(lender, borrower, 63)
    with device(lender).fake.streams[1].held():
        ticket = lender.lend([7])
        outcome = borrower.fetch(ticket, [Slot(0, 7)])
        lender.write_all(ticket)
        assert isinstance(outcome.end, Lost)
        lender.end_of(ticket.lease)
    land(lender, borrower, 7)


def test_a_block_given_away_while_its_sum_is_awaited_is_not_sent(
    lender: Lender, borrower: Borrower
) -> None:
    land(lender, borrower, 63)
    ticket = lender.lend([3])
    with device(lender).fake.streams[1].held():
        outcome = borrower.fetch(ticket, [Slot(0, 3)])
        lender.write_all(ticket)
        eventually(lambda: device(lender).fake.streams[1].num_waiting)
        device(lender).generations_N[3] += np.uint64(1)
        assert isinstance(outcome.end, Lost)
    assert "given to another request" in str(outcome.end.error)


def test_all_that_a_publish_makes_ready_is_summed_by_one_launch() -> None:
    layout = KvLayout(num_layers=4, num_kv_heads=8, head_dim=64, block_tokens=32, dtype="float32")
    lender = Lender(transports=DEVICE_TRANSPORTS, num_blocks=20, layout=layout)
    assert lender.memory.num_blocks * lender.memory.block_bytes == 10 << 20
    ticket = lender.lend(range(20))
    lender.write_all(ticket)
    fake = device(lender).fake
    eventually(lambda: fake.num_sums)
    heard_everything(lender)
    assert fake.num_sums == 1
    lender.close()
