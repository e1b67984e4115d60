"""UCX, for hosts with RDMA devices: bytes go between the pools by UCX, messages by a TCP socket.

An optional extra (`baton[ucx]`): without it, or without a device to use it on, the plane is
unreachable and says why. A stream is up only when a byte has come through UCX, so a device that
cannot reach the peer's falls back to the next plane instead of failing fetches.
Host memory only. Not encrypted.
"""

import socket
from contextlib import suppress

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.tcp_socket import TcpPort, connect_to, tune
from kvtransfer.transports.ucx import session
from kvtransfer.transports.ucx.messages import NAME
from kvtransfer.transports.ucx.session import UcxFailed, load_ucxx, why_not
from kvtransfer.transports.ucx.sink import UcxSinkSetup, UcxSinkStream
from kvtransfer.transports.ucx.source import UcxSourceSetup, UcxSourceStream
from kvtransfer.transports.ucx.thread import UcxWorker
from protocol.errors import PeerLost


def prepare() -> None:
    """Import ucxx, half a second, where it is of use. Why it is not, `listen` and `dial` say."""
    if not why_not():
        with suppress(UcxFailed):
            load_ucxx()


class UcxListener(TcpPort):
    transport = NAME

    def __init__(self, memory: BlockMemory, options: base.ListenOptions) -> None:
        """Raises base.Unreachable where UCX is of no use, TransferError when it cannot listen."""
        if why := why_not():
            raise base.Unreachable(why)
        try:
            load_ucxx()
        except UcxFailed as error:
            raise base.Unreachable(str(error)) from error
        self._memory = memory
        super().__init__(options.host, options.port)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        tune(sock)
        try:
            setup = UcxSourceSetup(welcome=welcome, peer=hello.setup)
            return UcxSourceStream(sock, self._memory, setup)
        except OSError as error:  # out of descriptors
            raise PeerLost(str(error)) from error


def dial(memory: BlockMemory, options: base.DialOptions) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    sock = connect_to(options.address)
    try:
        return UcxDial(sock, memory, options)
    except OSError as error:  # out of descriptors
        sock.close()
        raise base.Unreachable(str(error)) from error


class UcxDial(Dial):
    """Waits for our worker, then for the welcome, then for the first byte through UCX."""

    def __init__(self, sock: socket.socket, memory: BlockMemory, options: base.DialOptions) -> None:
        super().__init__(sock, options, transport=NAME, finish=self._met)
        self._worker = UcxWorker(memory.blocks)
        self._poller = self._worker.poller()
        self._memory = memory
        self._is_ready = self._is_proved = False
        self._stream: base.SinkStream | None = None

    def fileno(self) -> int:
        return self._poller.fileno()

    def advance(self) -> base.SinkStream | None:
        self._look()
        if self._stream is None and self._is_ready:
            self._stream = super().advance()
            self._poller.watch(self._sock.fileno(), writable=self.writable)
        if self._stream is not None and not self._is_proved:
            self._check_peer()
        return self._stream if self._is_proved else None

    def close(self) -> None:
        self._poller.close()
        super().close()
        self._worker.stop()

    def _look(self) -> None:
        for event in self._worker.events():
            match event:
                case session.WorkerUp(address):
                    self._is_ready = True
                    self._hello = msgspec.structs.replace(self._hello, setup=address)
                    self._poller.watch(self._sock.fileno(), writable=True)
                case session.PeerReached():
                    self._is_proved = True
                case session.SessionBroke(why):
                    raise base.Unreachable(why)
                case session.RangesMoved():
                    raise AssertionError("nothing moves before the stream is up")

    def _met(self, sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        tune(sock)
        self._worker.connect_peer(welcome.setup, probe="receive")
        setup = UcxSinkSetup(worker=self._worker, poller=self._poller)
        return UcxSinkStream(sock, self._memory, setup)

    def _check_peer(self) -> None:
        """The source says nothing now, unless it gives up."""
        try:
            if not self._sock.recv(1, socket.MSG_PEEK):
                raise base.Unreachable("the source reaches us not through UCX, and gave up")
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise base.Unreachable(str(error)) from error


__all__ = ["UcxListener", "dial", "prepare", "why_not"]
