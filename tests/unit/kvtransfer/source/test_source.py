"""What a source does with peers that do not keep to the protocol."""

import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest
import zmq
from support.eventually import eventually
from support.pieces import u4s
from support.prefixes import SEED, Shelf
from support.transfer import COMPAT, LAYOUT, Borrower, Lender, Slot

from kvtransfer.endings import Landed, LeaseEnd
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_CONTROL_BYTES,
    Borrow,
    FetchBlocks,
    FetchFailed,
    Lent,
    Open,
    Opened,
    Refused,
    Release,
    Renew,
    Renewed,
    SessionId,
    StreamHello,
    ToSink,
    ToSource,
    stream_hello,
    to_sink,
    to_source,
)
from kvtransfer.source import sinks
from kvtransfer.source.sinks import ConnectedSink
from kvtransfer.source.source import Source
from kvtransfer.transports.control import Identity
from kvtransfer.transports.tcp.messages import TcpSetup, tcp_setup
from kvtransfer.transports.tcp.plane import WINDOW_BYTES
from protocol.errors import CapacityError
from protocol.ids import Epoch, LeaseId, WorkerId, new_epoch
from protocol.messages import Ticket


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.close()


class Stranger:
    """Speaks to a source's control socket without manners."""

    def __init__(self, lender: Lender) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(lender.source.address)

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def say(self, message: ToSource) -> ToSink:
        self.send(to_source.encode(message))
        return self.hear()

    def hear(self) -> ToSink:
        return to_sink.decode(self.socket.recv())

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def stranger(lender: Lender) -> Iterator[Stranger]:
    stranger = Stranger(lender)
    yield stranger
    stranger.close()


def opened(stranger: Stranger, ticket: Ticket, *, session: int = 11) -> Opened:
    answer = stranger.say(Open(session=session, worker=WorkerId("x"), epoch=ticket.epoch))
    assert isinstance(answer, Opened)
    return answer


def serves_others(lender: Lender) -> bool:
    borrower = Borrower()
    ticket = lender.lend([0])
    lender.write_all(ticket)
    end = borrower.fetch(ticket, [Slot(0, 0)]).end
    borrower.close()
    return isinstance(end, Landed)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x00", b"\xff" * 50, bytes([CONTROL_VERSION]), bytes([CONTROL_VERSION + 1]) + b"x"],
)
def test_bytes_that_are_no_message_are_refused_and_harm_nobody(
    lender: Lender, stranger: Stranger, frame: bytes
) -> None:
    stranger.send(frame)
    answer = stranger.hear()
    assert isinstance(answer, Refused) and answer.code == "protocol"
    assert serves_others(lender)


def test_a_message_in_several_frames_is_refused(lender: Lender, stranger: Stranger) -> None:
    stranger.socket.send_multipart([b"a", b"b", b"c"])
    assert isinstance(stranger.hear(), Refused)
    assert serves_others(lender)


def test_an_oversize_message_is_not_even_received(lender: Lender, stranger: Stranger) -> None:
    stranger.send(bytes([CONTROL_VERSION]) + bytes(MAX_CONTROL_BYTES + 1))
    stranger.socket.setsockopt(zmq.RCVTIMEO, 50)
    with pytest.raises(zmq.Again):
        stranger.hear()
    assert serves_others(lender)


def test_nothing_is_answered_before_the_link_is_opened(lender: Lender, stranger: Stranger) -> None:
    ticket = lender.lend([0])
    for message in (Release(lease=ticket.lease), Renew(leases=(ticket.lease,), remaining_s=60.0)):
        answer = stranger.say(message)
        assert isinstance(answer, Refused) and answer.reason == "open first"
    assert lender.source.num_leases == 1


def test_another_epoch_is_refused(lender: Lender, stranger: Stranger) -> None:
    answer = stranger.say(Open(session=1, worker=WorkerId("x"), epoch=Epoch(12)))
    assert isinstance(answer, Refused) and answer.code == "epoch"


def test_a_fetch_without_a_stream_is_refused(lender: Lender, stranger: Stranger) -> None:
    ticket = lender.lend([0])
    opened(stranger, ticket)
    answer = stranger.say(
        FetchBlocks(
            fetch=1, attempt=1, lease=ticket.lease, compat=COMPAT, layout=LAYOUT,
            indices=u4s(0), slots=u4s(0),
        )
    )  # fmt: skip
    assert isinstance(answer, FetchFailed) and answer.code == "refused"


def test_another_layout_is_refused_by_the_source_too(lender: Lender, stranger: Stranger) -> None:
    ticket = lender.lend([0])
    opened(stranger, ticket)
    layout = msgspec.structs.replace(LAYOUT, head_dim=16)
    answer = stranger.say(
        FetchBlocks(
            fetch=1, attempt=1, lease=ticket.lease, compat=COMPAT, layout=layout, indices=b"",
            slots=b"",
        )
    )  # fmt: skip
    assert isinstance(answer, FetchFailed) and answer.code == "mismatch"


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 0}, {"num_layers": -1}, {"block_tokens": 1 << 40}, {"num_kv_heads": 1 << 62},
        {"block_tokens": 1 << 20}, {"block_tokens": 3}, {"first_head": 1 << 30},
        {"total_kv_heads": 1}, {"dtype": "complex"},
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_refused_and_harms_nobody(
    lender: Lender, stranger: Stranger, changes: dict[str, object]
) -> None:
    ticket = lender.lend([0])
    opened(stranger, ticket)
    layout = msgspec.structs.replace(LAYOUT)
    for name, value in changes.items():
        msgspec.structs.force_setattr(layout, name, value)
    answer = stranger.say(
        FetchBlocks(
            fetch=1, attempt=1, lease=ticket.lease, compat=COMPAT, layout=layout, indices=u4s(0),
            slots=u4s(0),
        )
    )  # fmt: skip
    assert isinstance(answer, FetchFailed | Refused)
    assert serves_others(lender)


@pytest.mark.parametrize("heads", [(0, 0), (2, 1), (1, 9), (0, (1 << 32) - 1), (5, 6)])
def test_heads_that_cannot_be_are_refused_and_harm_nobody(
    lender: Lender, stranger: Stranger, heads: tuple[int, int]
) -> None:
    ticket = lender.lend([0])
    opened(stranger, ticket)
    answer = stranger.say(
        FetchBlocks(
            fetch=1, attempt=1, lease=ticket.lease, compat=COMPAT, layout=LAYOUT, heads=heads,
            indices=u4s(0), slots=u4s(0),
        )
    )  # fmt: skip
    assert isinstance(answer, FetchFailed | Refused)
    assert serves_others(lender)


def test_a_lease_nobody_opened_is_not_renewed(lender: Lender, stranger: Stranger) -> None:
    opened(stranger, lender.lend([0]))
    answer = stranger.say(Renew(leases=(LeaseId(5),), remaining_s=6.0))
    assert isinstance(answer, Renewed)
    assert [(gone.lease, gone.code) for gone in answer.gone] == [(5, "lease_expired")]


def test_nobody_frees_a_lease_that_another_fetches(lender: Lender, stranger: Stranger) -> None:
    ticket = lender.lend([0])
    borrower = Borrower()
    outcome = borrower.fetch(ticket, [Slot(0, 0)])
    lender.source.publish(ticket.lease, 4)
    eventually(lambda: lender.sent(ticket.lease) == 1)
    opened(stranger, ticket)
    stranger.send(to_source.encode(Release(lease=ticket.lease)))
    answer = stranger.say(Renew(leases=(ticket.lease,), remaining_s=6.0))
    assert isinstance(answer, Renewed) and answer.gone[0].code == "refused"
    lender.source.finish(ticket.lease, b"")
    assert isinstance(outcome.end, Landed)
    borrower.close()


def tcp_address(answer: Opened) -> tuple[str, int]:
    (address,) = (plane.address for plane in answer.planes if plane.transport == "tcp")
    host, _, port = address.rpartition(":")
    return host, int(port)


def _word(hello: StreamHello) -> bytes:
    packed = stream_hello.encode(hello)
    return struct.pack("<I", len(packed)) + packed


@pytest.mark.parametrize("wrong", ["session", "epoch", "version", "lane", "setup", "junk", "long"])
def test_a_stream_with_a_wrong_first_word_is_closed(
    lender: Lender, stranger: Stranger, wrong: str
) -> None:
    ticket = lender.lend([0])
    answer = opened(stranger, ticket, session=77)
    hello = StreamHello(
        version=CONTROL_VERSION, session=77, epoch=ticket.epoch,
        setup=tcp_setup.encode(TcpSetup(window_bytes=WINDOW_BYTES)),
    )  # fmt: skip
    if wrong == "junk":
        word = b"\x05\x00\x00\x00hello"
    elif wrong == "long":
        word = b"\xff\xff\xff\x7f"
    else:
        word = _word(msgspec.structs.replace(hello, **{wrong: b"x" if wrong == "setup" else 9}))
    with socket.create_connection(tcp_address(answer), timeout=10.0) as sock:
        sock.sendall(word)
        assert sock.recv(1) == b""
    assert serves_others(lender)


def test_a_second_stream_of_one_session_is_closed(lender: Lender, stranger: Stranger) -> None:
    ticket = lender.lend([0])
    answer = opened(stranger, ticket, session=77)
    hello = StreamHello(
        version=CONTROL_VERSION, session=77, epoch=ticket.epoch,
        setup=tcp_setup.encode(TcpSetup(window_bytes=WINDOW_BYTES)),
    )  # fmt: skip
    address = tcp_address(answer)
    with socket.create_connection(address, timeout=10.0) as first:
        first.sendall(_word(hello))
        assert first.recv(4)
        with socket.create_connection(address, timeout=10.0) as second:
            second.sendall(_word(hello))
            assert second.recv(1) == b""


def test_a_fetch_that_meets_a_stream_just_broken_is_left_to_be_asked_again(
    lender: Lender, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[ConnectedSink] = []

    class Recorded(ConnectedSink):
        def __init__(self, identity: Identity, session: SessionId, worker: WorkerId) -> None:
            super().__init__(identity, session, worker)
            connected.append(self)

    monkeypatch.setattr(sinks, "ConnectedSink", Recorded)
    ticket = lender.lend([0])
    answer = opened(stranger, ticket, session=77)
    hello = StreamHello(
        version=CONTROL_VERSION, session=77, epoch=ticket.epoch,
        setup=tcp_setup.encode(TcpSetup(window_bytes=WINDOW_BYTES)),
    )  # fmt: skip
    with socket.create_connection(tcp_address(answer), timeout=10.0) as first:
        first.sendall(_word(hello))
        assert first.recv(4)
    (sink,) = connected
    eventually(lambda: sink.stream_end)
    fetch = FetchBlocks(
        fetch=1, attempt=1, lease=ticket.lease, compat=COMPAT, layout=LAYOUT,
        indices=u4s(0), slots=u4s(0),
    )  # fmt: skip
    stranger.send(to_source.encode(fetch))
    assert stranger.say(Renew(leases=(ticket.lease,), remaining_s=1.0)) == Renewed(gone=())


def test_what_the_owner_gets_wrong_is_a_value_error(lender: Lender) -> None:
    with pytest.raises(ValueError, match="2 blocks for 4 tokens"):
        lender.source.open_lease(block_ids=[0, 1], num_tokens=4)
    with pytest.raises(ValueError, match="block_ids"):
        lender.source.open_lease(block_ids=[64], num_tokens=4)
    ticket = lender.lend([0])
    with pytest.raises(ValueError, match="num_tokens"):
        lender.source.publish(ticket.lease, 5)
    with pytest.raises(ValueError, match="note"):
        lender.source.finish(ticket.lease, bytes(100_000))


def test_memory_of_another_block_size_is_refused(lender: Lender) -> None:
    layout = msgspec.structs.replace(LAYOUT, head_dim=16)
    with pytest.raises(ValueError, match="layout"):
        Source(
            memory=lender.memory, layout=layout, worker=WorkerId("w"), epoch=new_epoch(),
            compat="", on_lease_end=lender.ends.put,
        )  # fmt: skip


def test_words_about_an_ended_lease_are_no_error(lender: Lender) -> None:
    ticket = lender.lend([0])
    lender.source.fail(ticket.lease, "gone")
    assert lender.end_of(ticket.lease).reason == "failed"
    lender.source.publish(ticket.lease, 4)
    lender.source.finish(ticket.lease, b"")
    lender.source.fail(ticket.lease, "again")
    assert serves_others(lender)


def test_a_closed_source_ends_its_leases_and_takes_no_more(lender: Lender) -> None:
    tickets = [lender.lend([i]) for i in range(3)]
    lender.source.close()
    assert {lender.ends.get_nowait().lease for _ in tickets} == {t.lease for t in tickets}
    with pytest.raises(CapacityError):
        lender.lend([5])


def test_an_owner_that_raises_at_a_leases_end_does_not_stop_the_source() -> None:
    raised: list[LeaseEnd] = []

    def owner(end: LeaseEnd) -> None:
        raised.append(end)
        raise RuntimeError("the engine is confused")

    memory = BlockMemory.create(num_blocks=2, block_bytes=LAYOUT.block_bytes)
    source = Source(
        memory=memory, layout=LAYOUT, worker=WorkerId("w"), epoch=new_epoch(), compat="",
        on_lease_end=owner,
    )  # fmt: skip
    for block in range(2):
        ticket = source.open_lease(block_ids=[block], num_tokens=4)
        source.fail(ticket.lease, "x")
    eventually(lambda: len(raised) == 2)
    source.close()
    memory.close()


def test_a_loan_cannot_be_renewed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for cached blocks and only renews gives them back in the end."""
    monkeypatch.setattr("kvtransfer.source.leases.LOAN_S", 0.4)
    lender = Lender(on_borrow=Shelf(blocks=(1, 2)).hear, lease_ttl_s=0.2)
    stranger = Stranger(lender)
    assert isinstance(
        stranger.say(Open(session=3, worker=WorkerId("x"), epoch=lender.epoch)), Opened
    )
    tokens = bytes(4 * LAYOUT.block_tokens)
    lent = stranger.say(Borrow(fetch=1, compat=COMPAT, seed=SEED, token_ids=tokens))
    assert isinstance(lent, Lent) and lent.num_tokens == LAYOUT.block_tokens

    def given_back() -> bool:
        answer = stranger.say(Renew(leases=(lent.lease,), remaining_s=60.0))
        return isinstance(answer, Renewed) and bool(answer.gone)

    eventually(given_back)
    assert lender.end_of(lent.lease).reason == "expired"
    stranger.close()
    lender.close()
