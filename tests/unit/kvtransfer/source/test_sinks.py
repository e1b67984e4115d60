"""A session that opens no stream does not stay."""

from collections.abc import Iterator

import pytest

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import CONTROL_VERSION, Open, Opened, StreamWelcome
from kvtransfer.source.sinks import Visitor, Visitors
from kvtransfer.transports.base import ListenOptions
from kvtransfer.transports.control import ControlServer, Poller
from kvtransfer.transports.tcp.plane import TcpListener
from protocol.ids import Epoch, WorkerId

EPOCH = Epoch(5)
OPEN = Open(session=1, worker=WorkerId("decode-0"), epoch=EPOCH)


class Door:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.lost: list[str] = []
        self.memory = BlockMemory.create(num_blocks=1, block_bytes=64)
        self.control = ControlServer("127.0.0.1")
        self.visitors = Visitors(
            control=self.control, poller=Poller(),
            listeners=[TcpListener(self.memory, ListenOptions(host="127.0.0.1", epoch=EPOCH))],
            opened=Opened(epoch=EPOCH, planes=()),
            welcome=StreamWelcome(
                version=CONTROL_VERSION, epoch=EPOCH, num_blocks=1, block_bytes=64
            ),
            on_lost=self.note, clock=lambda: self.now_s,
        )  # fmt: skip

    def note(self, visitor: Visitor, why: str) -> None:
        self.lost.append(why)


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.visitors.close()
    door.control.close()
    door.memory.close()


def test_a_visitor_that_cannot_be_answered_is_gone_at_once(door: Door) -> None:
    door.visitors.open(b"nobody", OPEN)
    assert len(door.visitors) == 0
    assert door.lost == ["its control link is gone or full"]


def test_a_visitor_without_a_stream_is_forgotten_in_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.control, "send", lambda identity, message: True)
    door.visitors.open(b"someone", OPEN)
    wait_s = door.visitors.next_in_s()
    assert wait_s is not None and wait_s > 0
    door.now_s += wait_s - 0.01
    door.visitors.look(set())
    assert len(door.visitors) == 1
    door.now_s += 0.01
    door.visitors.look(set())
    assert len(door.visitors) == 0 and door.lost == ["it opened no stream"]


def test_a_session_is_opened_once(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.control, "send", lambda identity, message: True)
    door.visitors.open(b"first", OPEN)
    door.visitors.open(b"second", OPEN)
    assert len(door.visitors) == 1 and door.visitors.get(b"second") is None
