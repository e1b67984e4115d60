"""What a sink does with what it can reach, and with sources that do not keep to the protocol."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.eventually import eventually
from support.transfer import COMPAT, LAYOUT, NUM_BLOCKS, Borrower, Lender, Outcome

from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_STREAM_WORD_BYTES,
    Descriptor,
    Fetch,
    Finish,
    Open,
    Opened,
    Ready,
    Refused,
    Slot,
    StreamHello,
    StreamWelcome,
    ToSink,
    ToSource,
    stream_hello,
)
from kvtransfer.pool import BlockMemory
from kvtransfer.sink import Aborted, Landed, Lost, Sink
from kvtransfer.transports.base import SourceStream, WordReader
from kvtransfer.transports.control import ControlServer, Identity
from kvtransfer.transports.shm import ShmListener
from protocol.errors import CapacityError, LayoutMismatch, PeerLost, TransferError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.messages import Ticket


def lost(outcome: Outcome) -> TransferError:
    assert isinstance(outcome.end, Lost), outcome.end
    return outcome.end.error


def fetch_one(borrower: Borrower, lender: Lender, **changes: str) -> Outcome:
    ticket = lender.lend([0])
    lender.write_all(ticket)
    return borrower.fetch(msgspec.structs.replace(ticket, **changes), [Slot(0, 0)])


# -- choice of transport ------------------------------------------------------------------


def test_shared_memory_is_taken_where_it_is_reachable() -> None:
    lender, borrower = Lender(), Borrower()
    end = fetch_one(borrower, lender).end
    assert isinstance(end, Landed)
    assert (end.transport, end.transport_why) == ("shm", "shm reachable")
    assert borrower.sink.transports_used == (("shm", 1),)
    borrower.close()
    lender.close()


@pytest.mark.parametrize(
    ("shm_address", "why"),
    [("", "offers no shared memory"), ("baton-kv-elsewhere", "Connection refused")],
)
def test_tcp_is_taken_otherwise_and_says_why(shm_address: str, why: str) -> None:
    lender, borrower = Lender(), Borrower()
    end = fetch_one(borrower, lender, shm_address=shm_address).end
    assert isinstance(end, Landed) and end.transport == "tcp"
    assert end.transport_why.startswith("tcp reachable; not shm:") and why in end.transport_why
    borrower.close()
    lender.close()


def test_without_fallback_the_slower_transport_is_refused() -> None:
    lender, borrower = Lender(), Borrower(allow_fallback=False)
    ticket = msgspec.structs.replace(lender.lend([0]), shm_address="baton-kv-elsewhere")
    error = lost(borrower.fetch(ticket, [Slot(0, 0)]))
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

    borrower.sink.fetch(ticket=lender.lend([0]), slots=[], deadline_s=0.01, on_end=owner)
    eventually(lambda: borrower.sink.num_fetches == 0)
    assert isinstance(fetch_one(borrower, lender).end, Landed)
    borrower.close()
    lender.close()


@pytest.mark.parametrize("transport", ["memory", "shm", "tcp"])
def test_closing_leaves_no_thread_descriptor_or_mapping(transport: str) -> None:
    def resources() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text().count("memfd:baton-kv")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), maps

    before = resources()
    for _ in range(3):
        lender, borrower = Lender(), Borrower(transports=(transport,))
        outcome = borrower.fetch(lender.lend([1]), [Slot(0, 0)])
        assert isinstance(fetch_one(borrower, lender).end, Landed)
        borrower.close()
        lender.close()
        assert outcome.end == Aborted("the sink closes")
    eventually(lambda: resources() == before)


# -- sources that lie ---------------------------------------------------------------------

EPOCH = Epoch(99)
TICKET = Ticket(
    worker=WorkerId("liar"), epoch=EPOCH, lease=LeaseId(1), address="", shm_address="",
    layout=LAYOUT, compat=COMPAT, num_tokens=12,
)  # fmt: skip


class Liar:
    """A source that says over shared memory what a test tells it to."""

    def __init__(self) -> None:
        self.memory = BlockMemory.create(num_blocks=4, block_bytes=LAYOUT.block_bytes)
        self.control = ControlServer("127.0.0.1")
        self.listener = ShmListener(self.memory, epoch=EPOCH)
        self.ticket = msgspec.structs.replace(
            TICKET,
            address=f"tcp://127.0.0.1:{self.control.port}",
            shm_address=self.listener.address,
        )
        self.sink = Identity()
        self.stream: SourceStream | None = None

    def hear(self, kind: type[ToSource]) -> None:
        def heard() -> bool:
            for identity, message in self.control.receive():
                self.sink = identity
                if isinstance(message, kind):
                    return True
            return False

        eventually(heard)

    def say(self, message: ToSink) -> None:
        assert self.control.send(self.sink, message)

    def open(self) -> None:
        """Let the sink in, up to its first `Fetch`."""
        self.hear(Open)
        self.say(Opened(epoch=EPOCH, data_host="127.0.0.1", data_port=0))
        sock: socket.socket = eventually(self.listener.accept)  # type: ignore[assignment]
        reader = WordReader(MAX_STREAM_WORD_BYTES)
        hello = eventually(lambda: reader.read(sock, stream_hello))
        assert isinstance(hello, StreamHello)
        welcome = StreamWelcome(
            version=CONTROL_VERSION, epoch=EPOCH, num_blocks=4, block_bytes=LAYOUT.block_bytes
        )
        self.stream = self.listener.welcome(sock, welcome)
        self.hear(Fetch)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.listener.close()
        self.control.close()
        self.memory.close()


@pytest.fixture
def liar() -> Iterator[Liar]:
    liar = Liar()
    yield liar
    liar.close()


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    borrower = Borrower()
    yield borrower
    borrower.close()


def block(index: int = 0, **changes: int) -> Descriptor:
    fields = {
        "index": index, "block_id": 0, "token_start": index * 4, "token_count": 4,
        "num_bytes": LAYOUT.block_bytes, "generation": 0, "checksum": 1,
    }  # fmt: skip
    return Descriptor(**{**fields, **changes})


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"block_id": 4}, "which it has not"),
        ({"block_id": NUM_BLOCKS * 1000}, "which it has not"),
        ({"token_start": 4}, "the lease says"),
        ({"token_count": 5}, "the lease says"),
        ({"num_bytes": 1 << 31}, "the lease says"),
    ],
)
def test_a_block_that_cannot_be_is_not_copied(
    liar: Liar, borrower: Borrower, lie: dict[str, int], why: str
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.say(Ready(fetch=1, attempt=1, blocks=(block(**lie),)))
    assert why in str(lost(outcome))
    assert not any(borrower.memory.blocks)


@pytest.mark.parametrize("lie", [{"checksum": 2}, {"generation": 1}])
def test_a_block_with_another_checksum_or_generation_never_lands(
    liar: Liar, borrower: Borrower, lie: dict[str, int]
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    for attempt in (1, 2, 3):
        liar.say(Ready(fetch=1, attempt=attempt, blocks=(block(**lie),)))
        if attempt < 3:
            liar.hear(Fetch)
    assert "attempt 3" in str(lost(outcome))


def test_words_of_other_attempts_slots_and_fetches_change_nothing(
    liar: Liar, borrower: Borrower
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.say(Ready(fetch=1, attempt=2, blocks=(block(),)))
    liar.say(Ready(fetch=1, attempt=1, blocks=(block(1),)))
    liar.say(Ready(fetch=7, attempt=1, blocks=(block(),)))
    liar.say(Finish(fetch=1, attempt=2, note=b"wrong", since_s=0.0))
    liar.say(Finish(fetch=1, attempt=1, note=b"", since_s=0.0))
    borrower.sink.cancel(outcome.fetch, reason="enough")
    assert outcome.end == Aborted("enough")
    assert not any(borrower.memory.blocks)


def test_a_note_without_the_blocks_does_not_land(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)], deadline_s=0.5)
    liar.open()
    liar.say(Finish(fetch=1, attempt=1, note=b"", since_s=0.0))
    assert "not landed within" in str(lost(outcome))


def test_a_source_that_refuses_the_link_loses_the_fetch(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.hear(Open)
    liar.say(Refused(code="version", reason="too new for you"))
    assert "too new for you" in str(lost(outcome))


def test_a_source_that_opens_twice_is_dropped(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.say(Opened(epoch=EPOCH, data_host="127.0.0.1", data_port=0))
    assert isinstance(lost(outcome), PeerLost)


def test_a_source_that_sends_no_message_is_dropped(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.control._socket.send_multipart((liar.sink, b"\x01\xc1garbage"))
    assert "malformed" in str(lost(outcome))
