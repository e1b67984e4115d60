"""What a sink does with what it can reach."""

from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest
from support.census import back_to, settled
from support.eventually import eventually
from support.middle import Middle, NoHarm, Way
from support.transfer import COMPAT, LAYOUT, Borrower, Lender, Outcome, Slot

from kvtransfer.endings import Aborted, Landed, Lost
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Opened, PlaneAddress, to_sink
from kvtransfer.sink.sink import Sink
from protocol.errors import CapacityError, LayoutMismatch, PeerLost, TransferError
from protocol.ids import WorkerId


def lost(outcome: Outcome) -> TransferError:
    assert isinstance(outcome.end, Lost), outcome.end
    return outcome.end.error


def fetch_one(borrower: Borrower, lender: Lender, **changes: str) -> Outcome:
    ticket = lender.lend([0])
    lender.write_all(ticket)
    return borrower.fetch(msgspec.structs.replace(ticket, **changes), [Slot(0, 0)])


class Elsewhere(NoHarm):
    """Leads a sink to shared memory that is not there."""

    def message(self, way: Way, packed: bytes) -> list[bytes]:
        if way == "to sink" and isinstance(opened := to_sink.decode(packed), Opened):
            planes = tuple(
                PlaneAddress("shm", "baton-kv-elsewhere") if plane.transport == "shm" else plane
                for plane in opened.planes
            )
            return [to_sink.encode(msgspec.structs.replace(opened, planes=planes))]
        return [packed]


@pytest.fixture
def elsewhere() -> Iterator[Middle]:
    with closing(Middle(Elsewhere())) as middle:
        yield middle


# -- choice of transport ------------------------------------------------------------------


def test_shared_memory_is_taken_where_it_is_reachable() -> None:
    lender, borrower = Lender(), Borrower()
    end = fetch_one(borrower, lender).end
    assert isinstance(end, Landed)
    assert (end.transport, end.transport_why) == ("shm", "shm reachable")
    borrower.close()
    lender.close()


def test_tcp_is_taken_where_the_source_serves_no_shared_memory_and_says_why() -> None:
    lender, borrower = Lender(transports=("tcp",)), Borrower()
    end = fetch_one(borrower, lender).end
    assert isinstance(end, Landed) and end.transport == "tcp"
    assert end.transport_why == "tcp reachable; not shm: the source does not serve shm"
    borrower.close()
    lender.close()


def test_tcp_is_taken_where_shared_memory_is_out_of_reach_and_says_why(elsewhere: Middle) -> None:
    lender, borrower = Lender(), Borrower()
    ticket = elsewhere.lead(lender.lend([0]))
    lender.write_all(ticket)
    end = borrower.fetch(ticket, [Slot(0, 0)]).end
    assert isinstance(end, Landed) and end.transport == "tcp"
    assert end.transport_why.startswith("tcp reachable; not shm: Connection refused")
    borrower.close()
    lender.close()


def test_without_fallback_the_slower_transport_is_refused(elsewhere: Middle) -> None:
    lender, borrower = Lender(), Borrower(allow_fallback=False)
    error = lost(borrower.fetch(elsewhere.lead(lender.lend([0])), [Slot(0, 0)]))
    assert isinstance(error, LayoutMismatch) and "no fallback allowed" in str(error)
    borrower.close()
    lender.close()


def test_a_source_that_offers_nothing_we_use_is_refused_with_all_reasons() -> None:
    lender, borrower = Lender(transports=("memory",)), Borrower()
    error = str(lost(fetch_one(borrower, lender)))
    assert "not shm" in error and "not tcp" in error
    borrower.close()
    lender.close()


def test_nobody_listening_is_noticed_at_once() -> None:
    lender, borrower = Lender(), Borrower()
    ticket = lender.lend([0])
    lender.close()
    assert isinstance(lost(borrower.fetch(ticket, [Slot(0, 0)])), PeerLost)
    borrower.close()


@pytest.mark.parametrize("address", ["", "nonsense", "tcp://", "tcp://127.0.0.1:99999999"])
def test_an_address_that_is_none_loses_one_fetch(address: str) -> None:
    lender, borrower = Lender(), Borrower()
    assert isinstance(lost(fetch_one(borrower, lender, address=address)), PeerLost)
    assert isinstance(fetch_one(borrower, lender).end, Landed)
    borrower.close()
    lender.close()


def test_a_new_incarnation_is_reached_after_the_old_one_died() -> None:
    borrower = Borrower()
    for _ in range(3):
        lender = Lender()
        assert isinstance(fetch_one(borrower, lender).end, Landed)
        lender.close()
    borrower.close()


def test_unknown_transports_and_other_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="transports"):
        Borrower(transports=("pigeon",))
    memory = BlockMemory.create(num_blocks=1, block_bytes=1)
    with pytest.raises(ValueError, match="layout"):
        Sink(memory=memory, layout=LAYOUT, worker=WorkerId("w"), compat=COMPAT)
    memory.close()


def test_a_closed_sink_takes_no_fetch() -> None:
    lender, borrower = Lender(), Borrower()
    borrower.sink.close()
    with pytest.raises(CapacityError):
        borrower.fetch(lender.lend([0]), [])
    borrower.close()
    lender.close()


def test_an_owner_that_raises_at_a_fetchs_end_does_not_stop_the_sink() -> None:
    lender, borrower = Lender(), Borrower()

    def owner(end: object) -> None:
        raise RuntimeError("the worker is confused")

    borrower.sink.fetch(
        ticket=lender.lend([0]), indices=[], block_ids=[], deadline_s=0.01, on_end=owner
    )
    eventually(lambda: borrower.sink.num_fetches == 0)
    assert isinstance(fetch_one(borrower, lender).end, Landed)
    borrower.close()
    lender.close()


@pytest.mark.parametrize("transport", ["memory", "shm", "tcp"])
def test_closing_leaves_no_thread_descriptor_or_mapping(transport: str) -> None:
    before = settled()
    for _ in range(3):
        lender, borrower = Lender(), Borrower(transports=(transport,))
        outcome = borrower.fetch(lender.lend([1]), [Slot(0, 0)])
        assert isinstance(fetch_one(borrower, lender).end, Landed)
        borrower.close()
        lender.close()
        assert outcome.end == Aborted("the sink closes")
    back_to(before)
