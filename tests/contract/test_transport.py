"""What every data plane must do, the in-process one included."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from support.eventually import eventually
from support.transfer import NUM_BLOCKS, TRANSPORTS, Borrower, Lender, Outcome, Slot, fill
from support.ucx import UCX

from kvtransfer.endings import Aborted, Landed, Lost
from kvtransfer.transport_names import DIRECT_TRANSPORTS
from protocol.errors import CorruptBlock, LayoutMismatch, PeerLost, TransferError

DIRECT = ["memory", "shm", "tcp", UCX, "cuda_ipc", "nccl"]
STAGED = ["shm device-host", "tcp host-device"]
"""Planes of hosts from and to pools on devices: each end of each way once."""
STAGED_TOO = ["shm device-device", "shm host-device", "tcp device-device", "tcp device-host"]
"""The same ends, paired otherwise."""


def long(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.fixture(params=[*DIRECT, *STAGED, *long(STAGED_TOO)])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, _, pools = str(request.param).partition(" ")
    if pools:
        source, _, sink = pools.partition("-")
        monkeypatch.setattr(Lender, "on_device", source == "device")
        monkeypatch.setattr(Borrower, "on_device", sink == "device")
    return name


@pytest.fixture
def lender(transport: str) -> Iterator[Lender]:
    lender = lending(transport)
    yield lender
    lender.close()


@pytest.fixture
def borrower(transport: str) -> Iterator[Borrower]:
    borrower = Borrower(transports=(transport,), allow_fallback=False)
    yield borrower
    borrower.close()


def lending(transport: str, *, lease_ttl_s: float = 6.0, num_blocks: int = NUM_BLOCKS) -> Lender:
    """A lender that offers everything that its pool can be moved by."""
    others = DIRECT_TRANSPORTS if transport in DIRECT_TRANSPORTS else TRANSPORTS
    return Lender(transports=others, lease_ttl_s=lease_ttl_s, num_blocks=num_blocks)


def landed(outcome: Outcome) -> Landed:
    assert isinstance(outcome.end, Landed), outcome.end
    return outcome.end


def lost(outcome: Outcome) -> TransferError:
    assert isinstance(outcome.end, Lost), outcome.end
    return outcome.end.error


def test_blocks_written_before_the_fetch_land_in_the_named_slots(
    transport: str, lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([5, 3, 9])
    lender.write_all(ticket, note=b"token 42")
    end = landed(borrower.fetch(ticket, [Slot(0, 1), Slot(1, 8), Slot(2, 4)]))
    assert (end.note, end.transport, end.num_blocks) == (b"token 42", transport, 3)
    assert end.num_bytes == 3 * lender.layout.block_bytes
    assert 0 <= end.exposed_s <= end.fetch_s
    assert 0 < end.flow_s <= end.fetch_s
    for theirs, ours in ((5, 1), (3, 8), (9, 4)):
        assert borrower.memory.block(ours) == lender.memory.block(theirs)
    over = lender.end_of(ticket.lease)
    assert (over.reason, over.transport, over.num_blocks) == ("released", transport, 3)
    assert lender.source.num_leases == 0


def test_blocks_arrive_while_later_ones_are_not_yet_written(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0, 1, 2])
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1), Slot(2, 2)])
    lender.source.publish(ticket.lease, 4)
    eventually(lambda: borrower.memory.block(0) == lender.memory.block(0))
    assert not outcome.ended and not any(borrower.memory.block(1))
    lender.source.publish(ticket.lease, 11)
    eventually(lambda: borrower.memory.block(1) == lender.memory.block(1))
    assert not outcome.ended and not any(borrower.memory.block(2))
    lender.source.finish(ticket.lease, b"")
    landed(outcome)
    assert borrower.memory.block(2) == lender.memory.block(2)


def test_a_partly_filled_last_block_is_sent_when_the_last_token_is_written(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([6, 7], num_tokens=5)
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
    lender.source.publish(ticket.lease, 5)
    eventually(lambda: borrower.memory.block(1) == lender.memory.block(7))
    lender.source.finish(ticket.lease, b"x")
    assert landed(outcome).num_blocks == 2


def test_only_the_blocks_asked_for_are_moved(lender: Lender, borrower: Borrower) -> None:
    ticket = lender.lend([0, 1, 2, 3])
    lender.write_all(ticket)
    assert landed(borrower.fetch(ticket, [Slot(3, 30)])).num_blocks == 1
    assert borrower.memory.block(30) == lender.memory.block(3)
    assert not any(borrower.memory.block(0))
    assert lender.end_of(ticket.lease).num_blocks == 1


def test_a_fetch_without_slots_waits_for_the_note(lender: Lender, borrower: Borrower) -> None:
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [])
    lender.source.publish(ticket.lease, 4)
    assert not outcome.ended
    lender.source.finish(ticket.lease, b"first token")
    end = landed(outcome)
    assert (end.note, end.num_blocks, end.num_bytes) == (b"first token", 0, 0)
    assert lender.end_of(ticket.lease).reason == "released"


def test_many_fetches_share_one_link_and_do_not_mix(lender: Lender, borrower: Borrower) -> None:
    tickets = [lender.lend([2 * i, 2 * i + 1]) for i in range(32)]
    outcomes = [
        borrower.fetch(ticket, [Slot(0, 63 - 2 * i), Slot(1, 62 - 2 * i)])
        for i, ticket in enumerate(tickets)
    ]
    for i, ticket in enumerate(tickets):
        lender.write_all(ticket, note=bytes([i]))
    for i, outcome in enumerate(outcomes):
        assert landed(outcome).note == bytes([i])
    for block in range(64):
        assert borrower.memory.block(63 - block) == lender.memory.block(block)
    eventually(lambda: lender.source.num_leases == 0)


def test_one_source_serves_many_sinks(transport: str, lender: Lender) -> None:
    borrowers = [Borrower(transports=(transport,)) for _ in range(4)]
    tickets = [lender.lend([i]) for i in range(4)]
    outcomes = [b.fetch(t, [Slot(0, 0)]) for b, t in zip(borrowers, tickets, strict=True)]
    for ticket in tickets:
        lender.write_all(ticket)
    for i, outcome in enumerate(outcomes):
        landed(outcome)
        assert borrowers[i].memory.block(0) == lender.memory.block(i)
    for borrower in borrowers:
        borrower.close()


@pytest.mark.parametrize("transport", [*DIRECT, *long(STAGED), *long(STAGED_TOO)], indirect=True)
def test_more_bytes_than_one_turn_or_socket_buffer_land_whole(transport: str) -> None:
    lender, borrower = (
        lending(transport, num_blocks=20_000),
        Borrower(transports=(transport,), num_blocks=20_000),
    )
    ids = list(range(20_000))
    ticket = lender.lend(ids)
    outcome = borrower.fetch(ticket, [Slot(i, 19_999 - i) for i in ids])
    lender.write_all(ticket)
    assert landed(outcome).num_blocks == 20_000
    for block in range(0, 20_000, 97):
        assert borrower.memory.block(19_999 - block) == lender.memory.block(block)
    borrower.close()
    lender.close()


def test_a_corrupted_block_is_fetched_again(transport: str, lender: Lender) -> None:
    spoilt: list[int] = []

    def spoil_once(slot: memoryview) -> None:
        if not spoilt:
            slot[17] ^= 1
            spoilt.append(1)

    borrower = Borrower(transports=(transport,), tamper=spoil_once)
    ticket = lender.lend([0, 1, 2])
    outcome = borrower.fetch(ticket, [Slot(i, i) for i in range(3)])
    lender.write_all(ticket)
    landed(outcome)
    assert spoilt and all(borrower.memory.block(i) == lender.memory.block(i) for i in range(3))
    borrower.close()


def test_a_block_that_stays_corrupted_is_never_landed(transport: str, lender: Lender) -> None:
    def spoil(slot: memoryview) -> None:
        slot[0] ^= 255

    borrower = Borrower(transports=(transport,), tamper=spoil)
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.write_all(ticket)
    assert isinstance(lost(outcome), CorruptBlock)
    assert lender.end_of(ticket.lease).reason == "released"
    borrower.close()


def test_a_block_given_to_another_request_is_never_landed(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0, 1])
    lender.memory.generations[1] += 1
    fill(lender.memory, 1, salt=5)
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
    lender.write_all(ticket)
    assert "given to another request" in str(lost(outcome))
    assert lender.end_of(ticket.lease).reason == "failed"


def test_a_failed_prefill_ends_the_fetch_with_its_reason(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.source.fail(ticket.lease, "the request ended with its first token")
    assert "first token" in str(lost(outcome))
    assert lender.end_of(ticket.lease).reason == "failed"


def test_a_fetch_of_an_ended_lease_is_told_how_it_ended(lender: Lender, borrower: Borrower) -> None:
    ticket = lender.lend([0])
    lender.source.fail(ticket.lease, "preempted")
    lender.end_of(ticket.lease)
    error = lost(borrower.fetch(ticket, [Slot(0, 0)]))
    assert error.retryable and "preempted" in str(error)


@pytest.mark.parametrize("written_tokens", [0, 4, 8])
def test_a_cancelled_fetch_frees_the_lease_at_once(
    lender: Lender, borrower: Borrower, written_tokens: int
) -> None:
    ticket = lender.lend([0, 1])
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
    lender.source.publish(ticket.lease, written_tokens)
    borrower.sink.cancel(outcome.fetch, reason="client gone")
    assert outcome.end == Aborted("client gone")
    end = lender.end_of(ticket.lease)
    assert (end.reason, end.detail) == ("released", "client gone")
    eventually(lambda: borrower.sink.num_fetches == 0)


def test_cancelling_a_fetch_that_has_landed_changes_nothing(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0])
    lender.write_all(ticket)
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    landed(outcome)
    borrower.sink.cancel(outcome.fetch)
    lender.end_of(ticket.lease)
    landed(outcome)


def test_a_fetch_that_takes_too_long_fails_and_frees_the_lease(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0])
    outcome = borrower.fetch(ticket, [Slot(0, 0)], deadline_s=0.05)
    assert "not landed within" in str(lost(outcome))
    assert lender.end_of(ticket.lease).reason == "released"


def test_a_lease_outlives_its_term_while_a_fetch_renews_it(transport: str) -> None:
    lender = lending(transport, lease_ttl_s=0.3)
    borrower = Borrower(transports=(transport,), lease_ttl_s=0.3)
    never_fetched, fetched = lender.lend([0]), lender.lend([1])
    outcome = borrower.fetch(fetched, [Slot(0, 0)])
    for _ in range(3):
        assert lender.end_of(never_fetched.lease).reason == "expired"
        assert not outcome.ended
        never_fetched = lender.lend([2])
    lender.write_all(fetched)
    landed(outcome)
    borrower.close()
    lender.close()


def test_a_held_ticket_is_renewed_and_a_dropped_one_freed(transport: str) -> None:
    lender = lending(transport, lease_ttl_s=0.3)
    borrower = Borrower(transports=(transport,), lease_ttl_s=0.3)
    held, other = lender.lend([0]), lender.lend([1])
    borrower.sink.hold(held)
    for _ in range(3):
        assert lender.end_of(other.lease).reason == "expired"
        other = lender.lend([1])
    borrower.sink.drop(held, reason="no room")
    end = lender.end_of(held.lease)
    assert (end.reason, end.detail) == ("released", "no room")
    borrower.close()
    lender.close()


def test_closing_the_sink_aborts_its_fetches_and_ends_their_leases(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0, 1])
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
    lender.source.publish(ticket.lease, 4)
    eventually(lambda: any(borrower.memory.block(0)))
    borrower.sink.close()
    assert isinstance(outcome.end, Aborted)
    assert lender.end_of(ticket.lease).reason in ("released", "expired")


def test_closing_the_source_fails_the_fetches_of_its_leases(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0, 1])
    outcome = borrower.fetch(ticket, [Slot(0, 0), Slot(1, 1)])
    lender.source.publish(ticket.lease, 4)
    eventually(lambda: any(borrower.memory.block(0)))
    lender.source.close()
    assert isinstance(lost(outcome), PeerLost)
    assert lender.end_of(ticket.lease).reason == "closed"


def test_a_ticket_of_an_earlier_incarnation_is_refused(lender: Lender, borrower: Borrower) -> None:
    ticket = msgspec.structs.replace(lender.lend([0]), epoch=1)
    assert isinstance(lost(borrower.fetch(ticket, [Slot(0, 0)])), PeerLost)


def test_another_models_blocks_are_refused_and_the_lease_freed(
    transport: str, lender: Lender
) -> None:
    borrower = Borrower(transports=(transport,), compat="another model")
    ticket = lender.lend([0])
    assert isinstance(lost(borrower.fetch(ticket, [Slot(0, 0)])), LayoutMismatch)
    assert lender.end_of(ticket.lease).reason == "released"
    borrower.close()


def test_a_lease_belongs_to_the_first_who_fetches_it(
    transport: str, lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend([0])
    first = borrower.fetch(ticket, [Slot(0, 0)])
    lender.source.publish(ticket.lease, 4)
    eventually(lambda: any(borrower.memory.block(0)))
    thief = Borrower(transports=(transport,))
    assert lost(thief.fetch(ticket, [Slot(0, 0)])).retryable
    lender.source.finish(ticket.lease, b"")
    landed(first)
    thief.close()


def test_slots_that_do_not_fit_are_the_callers_mistake(lender: Lender, borrower: Borrower) -> None:
    ticket = lender.lend([0, 1])
    mistakes = {
        "indices": ([Slot(2, 0)], [Slot(0, 1), Slot(0, 2)]),
        "block_ids": ([Slot(0, 64)], [Slot(0, 1), Slot(1, 1)]),
    }
    for name, cases in mistakes.items():
        for slots in cases:
            with pytest.raises(ValueError, match=name):
                borrower.fetch(ticket, slots)
    assert borrower.sink.num_fetches == 0
