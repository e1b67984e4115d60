"""A session that opens no stream does not stay."""

from collections.abc import Iterator

import pytest

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import CONTROL_VERSION, Open, Opened, StreamWelcome
from kvtransfer.source.sinks import ConnectedSink, Sinks
from kvtransfer.transports.base import ListenOptions
from kvtransfer.transports.control import ControlServer, Poller
from kvtransfer.transports.tcp.plane import TcpListener
from protocol.ids import Epoch, WorkerId

EPOCH = Epoch(5)
OPEN = Open(session=1, worker=WorkerId("decode-0"), epoch=EPOCH)


class Rig:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.lost: list[str] = []
        self.memory = BlockMemory.create(num_blocks=1, block_bytes=64)
        self.control = ControlServer("127.0.0.1")
        self.sinks = Sinks(
            control=self.control, poller=Poller(),
            listeners=[TcpListener(self.memory, ListenOptions(host="127.0.0.1", epoch=EPOCH))],
            opened=Opened(epoch=EPOCH, planes=()),
            welcome=StreamWelcome(
                version=CONTROL_VERSION, epoch=EPOCH, num_blocks=1, block_bytes=64
            ),
            sum_kinds=self.memory.sum_kinds, on_lost=self.note, clock=lambda: self.now_s,
        )  # fmt: skip

    def note(self, sink: ConnectedSink, why: str) -> None:
        self.lost.append(why)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.sinks.close()
    rig.control.close()
    rig.memory.close()


def test_a_sink_that_cannot_be_answered_is_gone_at_once(rig: Rig) -> None:
    rig.sinks.open_session(b"nobody", OPEN)
    assert len(rig.sinks) == 0
    assert rig.lost == ["its control link is gone or full"]


def test_a_sink_without_a_stream_is_forgotten_in_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.control, "send", lambda identity, message: True)
    rig.sinks.open_session(b"someone", OPEN)
    wait_s = rig.sinks.next_in_s()
    assert wait_s is not None and wait_s > 0
    rig.now_s += wait_s - 0.01
    rig.sinks.receive_ready(set())
    assert len(rig.sinks) == 1
    rig.now_s += 0.01
    rig.sinks.receive_ready(set())
    assert len(rig.sinks) == 0 and rig.lost == ["it opened no stream"]


def test_a_session_is_opened_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.control, "send", lambda identity, message: True)
    rig.sinks.open_session(b"first", OPEN)
    rig.sinks.open_session(b"second", OPEN)
    assert len(rig.sinks) == 1 and rig.sinks.find_sink(b"second") is None
