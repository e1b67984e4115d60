"""What a sink does with sources that do not keep to the protocol."""

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from numpy.typing import NDArray
from support.eventually import eventually
from support.pieces import chunk, pieces
from support.prefixes import Shelf, prefix_at, pull
from support.transfer import COMPAT, LAYOUT, NUM_BLOCKS, Borrower, Outcome, Slot

from kvtransfer.endings import Aborted, Lost
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    CONTROL_VERSION,
    NO_LEASE,
    Borrow,
    Cancel,
    Chunk,
    FetchBlocks,
    FetchFailed,
    Finish,
    Lent,
    Open,
    Opened,
    PlaneAddress,
    Refused,
    StreamWelcome,
    ToSink,
    ToSource,
    stream_hello,
    to_sink,
)
from kvtransfer.plan import whole_blocks
from kvtransfer.transports.base import ListenOptions, SourceStream
from kvtransfer.transports.control import ControlServer, Identity
from kvtransfer.transports.framing import FirstMessage, close_fds
from kvtransfer.transports.shm.plane import ShmListener
from protocol.errors import CorruptBlock, NotLent, PeerLost, TransferError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.messages import Ticket

EPOCH = Epoch(99)
NUM_TOKENS = 12
TICKET = Ticket(
    worker=WorkerId("liar"), epoch=EPOCH, lease=LeaseId(1), address="", layout=LAYOUT,
    compat=COMPAT, num_tokens=NUM_TOKENS,
)  # fmt: skip


def lost(outcome: Outcome) -> TransferError:
    assert isinstance(outcome.end, Lost), outcome.end
    return outcome.end.error


class Liar:
    """A source that says over shared memory what a test tells it to."""

    def __init__(self, *, block_bytes: int = LAYOUT.block_bytes) -> None:
        self.memory = BlockMemory.create(num_blocks=4, block_bytes=block_bytes)
        self.control = ControlServer("127.0.0.1")
        self.listener = ShmListener(self.memory, ListenOptions(host="127.0.0.1", epoch=EPOCH))
        self.ticket = msgspec.structs.replace(
            TICKET, address=f"tcp://127.0.0.1:{self.control.port}"
        )
        self.opened = Opened(epoch=EPOCH, planes=(PlaneAddress("shm", self.listener.address),))
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

    def open(self, first: type[ToSource] = FetchBlocks) -> None:
        """Let the sink in, up to the first word of this kind."""
        self.hear(Open)
        self.say(self.opened)
        sock: socket.socket = eventually(self.listener.accept)  # type: ignore[assignment]
        reader = FirstMessage(stream_hello)
        hello = eventually(lambda: reader.read(sock))
        assert hello is not None
        welcome = StreamWelcome(
            version=CONTROL_VERSION, epoch=EPOCH, num_blocks=4,
            block_bytes=self.memory.block_bytes,
        )  # fmt: skip
        self.stream = self.listener.welcome(sock, welcome, hello, reader.fds)
        close_fds(reader.fds)
        self.hear(first)

    def describe(self, word: Chunk) -> None:
        assert self.stream is not None
        ranges = whole_blocks(pieces_of(0)["index"], self.memory.block_bytes)
        self.stream.offer(word, ranges)
        self.stream.flush()

    def finish(self, word: Finish) -> None:
        assert self.stream is not None
        self.stream.finish(word)
        self.stream.flush()

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.listener.close()
        self.control.close()
        self.memory.close()


def pieces_of(*indices: int, **changes: int) -> NDArray[Any]:
    """Pieces of the ticket, for slot 3, with a wrong checksum unless told."""
    return pieces(
        indices, [3] * len(indices), block_tokens=LAYOUT.block_tokens, num_tokens=NUM_TOKENS,
        block_bytes=LAYOUT.block_bytes, **{"checksum": 1, **changes},
    )  # fmt: skip


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


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"token_start": 4}, "described as"),
        ({"token_count": 5}, "described as"),
        ({"num_bytes": 1 << 62}, "described as"),
        ({"slot": 2}, "described as"),
        ({"slot": NUM_BLOCKS * 1_000}, "described as"),
        ({"index": 1}, "nobody asked for"),
        ({"index": (1 << 32) - 1}, "nobody asked for"),
    ],
)
def test_a_piece_that_cannot_be_is_not_copied(
    liar: Liar, borrower: Borrower, lie: dict[str, int], why: str
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.describe(chunk(pieces_of(0, **lie), [0]))
    assert why in str(lost(outcome))
    assert not any(borrower.memory.blocks)


@pytest.mark.parametrize("block", [4, NUM_BLOCKS * 1_000, (1 << 32) - 2])
def test_a_block_that_the_source_has_not_is_never_read(
    liar: Liar, borrower: Borrower, block: int
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    for attempt in (1, 2, 3):
        liar.describe(chunk(pieces_of(0), [block], attempt=attempt))
        if attempt < 3:
            liar.hear(FetchBlocks)
    assert "has not" in str(lost(outcome))
    assert not any(borrower.memory.blocks)


@pytest.mark.parametrize("lie", [{"checksum": 2}, {"generation": 1}])
def test_a_piece_with_another_checksum_or_generation_never_lands(
    liar: Liar, borrower: Borrower, lie: dict[str, int]
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    for attempt in (1, 2, 3):
        liar.describe(chunk(pieces_of(0, **lie), [0], attempt=attempt))
        if attempt < 3:
            liar.hear(FetchBlocks)
    assert "attempt 3" in str(lost(outcome))


def test_a_pool_of_smaller_blocks_than_its_layout_says_is_not_read_beyond(
    borrower: Borrower,
) -> None:
    liar = Liar(block_bytes=64)
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.describe(chunk(pieces_of(0), [3]))
    assert isinstance(lost(outcome), TransferError)
    assert not any(borrower.memory.blocks)
    liar.close()


def test_words_of_other_attempts_and_fetches_change_nothing(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.describe(chunk(pieces_of(0), [0], attempt=2))
    liar.describe(chunk(pieces_of(0), [0], fetch=7))
    liar.finish(Finish(fetch=1, attempt=2, note=b"wrong", since_s=0.0))
    liar.finish(Finish(fetch=1, attempt=1, note=b"", since_s=0.0))
    borrower.sink.cancel(outcome.fetch, reason="enough")
    assert outcome.end == Aborted("enough")
    assert not any(borrower.memory.blocks)


def test_a_refusal_of_an_older_attempt_changes_nothing(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.describe(chunk(pieces_of(0), [0]))
    liar.hear(FetchBlocks)
    liar.say(FetchFailed(fetch=1, attempt=1, code="refused", reason="late"))
    liar.say(FetchFailed(fetch=1, attempt=2, code="refused", reason="in time"))
    assert str(lost(outcome)) == "in time"


def test_a_note_without_the_blocks_does_not_land(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)], deadline_s=0.5)
    liar.open()
    liar.finish(Finish(fetch=1, attempt=1, note=b"", since_s=0.0))
    assert "not landed within" in str(lost(outcome))


def test_a_source_that_refuses_the_link_loses_the_fetch(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.hear(Open)
    liar.say(Refused(code="version", reason="too new for you"))
    assert "too new for you" in str(lost(outcome))


def test_a_source_that_opens_twice_is_dropped(liar: Liar, borrower: Borrower) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    liar.say(liar.opened)
    assert isinstance(lost(outcome), PeerLost)


def test_a_source_that_sends_no_message_is_dropped(
    liar: Liar, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = borrower.fetch(liar.ticket, [Slot(0, 3)])
    liar.open()
    garbage = bytes([CONTROL_VERSION]) + b"\xc1garbage"
    monkeypatch.setattr(to_sink, "encode", lambda message: garbage)
    liar.say(liar.opened)
    assert "malformed" in str(lost(outcome))


PREFIX_HASHES = Shelf.hashes(range(2 * LAYOUT.block_tokens))


@pytest.mark.parametrize(
    ("lie", "error", "why"),
    [
        ({"num_tokens": 5 * LAYOUT.block_tokens}, PeerLost, "asked for"),
        ({"num_tokens": LAYOUT.block_tokens + 1}, PeerLost, "asked for"),
        ({"last": PREFIX_HASHES[0]}, CorruptBlock, "other tokens"),
        ({"last": b""}, CorruptBlock, "other tokens"),
        ({"lease": NO_LEASE}, NotLent, "lends nothing"),
        ({"num_tokens": 0, "last": b""}, NotLent, "here already"),
    ],
)
def test_a_loan_of_what_was_not_asked_for_ends_the_pull(
    liar: Liar, borrower: Borrower, lie: dict[str, Any], error: type[TransferError], why: str
) -> None:
    outcome = pull(borrower, prefix_at(liar.ticket), [3, 4])
    liar.open(Borrow)
    honest = {"lease": LeaseId(9), "num_tokens": 2 * LAYOUT.block_tokens, "last": PREFIX_HASHES[1]}
    liar.say(Lent(fetch=outcome.fetch, **{**honest, **lie}))
    assert type(lost(outcome)) is error and why in str(lost(outcome))


def test_a_loan_that_nobody_waits_for_is_given_back(liar: Liar, borrower: Borrower) -> None:
    outcome = pull(borrower, prefix_at(liar.ticket), [3, 4])
    liar.open(Borrow)
    for fetch in (outcome.fetch + 1, outcome.fetch):
        liar.say(Lent(fetch=fetch, lease=LeaseId(fetch), num_tokens=8, last=PREFIX_HASHES[1]))
    liar.hear(Cancel)
    liar.hear(FetchBlocks)
    liar.say(Lent(fetch=outcome.fetch, lease=LeaseId(77), num_tokens=8, last=PREFIX_HASHES[1]))
    liar.hear(Cancel)
    borrower.sink.cancel(outcome.fetch)
    assert isinstance(outcome.end, Aborted)
