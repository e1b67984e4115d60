"""UCX, for hosts with RDMA devices: bytes go between the pools by UCX, words by a TCP socket.

An optional extra (`baton[ucx]`): without it, or without a device to use it on, the plane is
unreachable and says why. A stream is up only when a byte has come through UCX, so a device that
cannot reach the peer's falls back to the next plane instead of failing fetches.
Host memory only. Not encrypted.
"""

import socket

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base, framing
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.polling import eyes_for
from kvtransfer.transports.tcp.plane import connect_to
from kvtransfer.transports.tcp.tuning import tune
from kvtransfer.transports.tcp_port import Port
from kvtransfer.transports.ucx.session import Broke, Moved, Proved, Ready, UcxFailed, load, why_not
from kvtransfer.transports.ucx.sink import NAME, UcxSinkStream
from kvtransfer.transports.ucx.source import UcxSourceStream
from kvtransfer.transports.ucx.thread import UcxWorker
from protocol.errors import PeerLost


def prepare() -> None:
    """Import ucxx: half a second that no stream should wait for. Raises base.Unreachable where
    UCX is of no use."""
    if why := why_not():
        raise base.Unreachable(why)
    try:
        load()
    except UcxFailed as error:
        raise base.Unreachable(str(error)) from error


class UcxListener(Port):
    """The source's port for words."""

    transport = NAME

    def __init__(self, memory: BlockMemory, host: str) -> None:
        """Listen on a free port of `host`. Raises base.Unreachable where UCX is of no use,
        TransferError when it cannot listen."""
        prepare()
        self._memory = memory
        super().__init__(host)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        tune(sock)
        try:
            return UcxSourceStream(sock, self._memory, welcome=word, peer=hello.setup)
        except OSError as error:  # out of descriptors
            raise PeerLost(str(error)) from error


def dial(address: str, hello: StreamHello, memory: BlockMemory) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    sock = connect_to(address)
    try:
        return UcxDial(sock, hello, memory)
    except OSError as error:  # out of descriptors
        sock.close()
        raise base.Unreachable(str(error)) from error


class UcxDial(Dial):
    """Waits for our worker, then for the welcome, then for the first byte through UCX."""

    def __init__(self, sock: socket.socket, hello: StreamHello, memory: BlockMemory) -> None:
        super().__init__(sock, transport=NAME, hello=hello, finish=self._met)
        self._worker = UcxWorker(memory.blocks)
        self._eyes = eyes_for(sock, self._worker)
        self._memory = memory
        self._is_ready = self._is_proved = False
        self._stream: base.SinkStream | None = None

    def fileno(self) -> int:
        return self._eyes.fileno()

    def advance(self) -> base.SinkStream | None:
        self._look()
        if self._stream is None and self._is_ready:
            self._stream = super().advance()
            self._eyes.watch(writable=self.writable)
        if self._stream is not None and not self._is_proved:
            self._check_peer()
        return self._stream if self._is_proved else None

    def close(self) -> None:
        self._eyes.close()
        super().close()
        self._worker.stop()

    def _look(self) -> None:
        for event in self._worker.events():
            match event:
                case Ready(address):
                    self._is_ready = True
                    self._hello = msgspec.structs.replace(self._hello, setup=address)
                    self._eyes.watch(writable=True)
                case Proved():
                    self._is_proved = True
                case Broke(why):
                    raise base.Unreachable(why)
                case Moved():
                    raise AssertionError("nothing moves before the stream is up")

    def _met(self, sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        framing.close_fds(fds)
        tune(sock)
        self._worker.meet(welcome.setup, probe="receive")
        return UcxSinkStream(sock, self._eyes, self._worker, self._memory)

    def _check_peer(self) -> None:
        """The source says nothing now, unless it gives up."""
        try:
            if not self._sock.recv(1, socket.MSG_PEEK):
                raise base.Unreachable("the source reaches us not through UCX, and gave up")
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise base.Unreachable(str(error)) from error


__all__ = ["NAME", "UcxListener", "dial", "prepare", "why_not"]
