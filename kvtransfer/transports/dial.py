"""Connecting and being connected to, without a wait: what all stream planes share."""

import errno
import os
import socket
from collections.abc import Callable, Sequence

import msgspec

from kvtransfer.messages import CONTROL_VERSION, StreamWelcome, stream_hello, stream_welcome
from kvtransfer.sum_kinds import SUM_KINDS, SumKind
from kvtransfer.transports.base import DialOptions, SinkStream, Unreachable
from kvtransfer.transports.framing import FirstMessage, close_fds, received, send_message
from protocol.errors import PeerLost, WireError


def check_for_end(sock: socket.socket) -> None:
    """Of a peer with nothing to say here: raises PeerLost at its end, WireError when it speaks."""
    data = received(sock, 1)
    if data:
        raise WireError("unexpected bytes on a data stream")
    if data is not None:
        raise PeerLost("the other process closed its stream")


Finisher = Callable[[socket.socket, StreamWelcome, list[int]], SinkStream]
"""Makes a stream of a connection that was welcomed; takes what it keeps of the welcome's
descriptors out of the list. Raises Unreachable or OSError."""


class Dial:
    """A stream on its way up, at the sink: connect, say hello, await the welcome."""

    def __init__(
        self, sock: socket.socket, options: DialOptions, *, transport: str, finish: Finisher,
        setup: bytes = b"", lane: int = 0, fds: Sequence[int] = (),
        give_up: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`sock` is non-blocking, and connected or connecting; it is ours from here on. `setup` and
        `lane` are the hello's; `fds` ride along with it, over unix sockets, and stay the caller's;
        `give_up` is called when the stream does not come up."""
        self.transport = transport
        self.writable = True
        """Still connecting: look again when the socket can be written."""
        self._sock = sock
        self._hello = msgspec.structs.replace(options.hello, setup=setup, lane=lane)
        self._finish = finish
        self._fds = fds
        self._give_up = give_up
        self._reader = FirstMessage(stream_welcome)

    def fileno(self) -> int:
        return self._sock.fileno()

    def advance(self) -> SinkStream | None:
        """The stream, or None while it is not up. Raises Unreachable; then call `close`."""
        try:
            if self.writable and not self._connected():
                return None
            welcome = self._reader.read(self._sock)
        except (PeerLost, WireError) as error:
            raise Unreachable(str(error)) from error
        if welcome is None:
            return None
        if welcome.version != CONTROL_VERSION or welcome.epoch != self._hello.epoch:
            raise Unreachable("another incarnation or version listens there")
        if welcome.refusal:
            raise Unreachable(welcome.refusal)
        try:
            return self._finish(self._sock, welcome, self._reader.fds)
        except OSError as error:
            raise Unreachable(str(error)) from error
        finally:
            close_fds(self._reader.fds)

    def close(self) -> None:
        """Only of a stream that is not up."""
        close_fds(self._reader.fds)
        self._sock.close()
        self._give_up()

    def _connected(self) -> bool:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise Unreachable(os.strerror(error))
        try:
            self._sock.getpeername()
        except OSError:
            return False
        self.writable = False
        send_message(self._sock, stream_hello.encode(self._hello), self._fds)
        return True


def connect(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    """A non-blocking stream socket that has begun to connect. Raises Unreachable."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as failed:
        raise Unreachable(str(failed)) from failed
    sock.setblocking(False)
    try:
        error = sock.connect_ex(address)
    except (OSError, TypeError) as failed:  # a TypeError is of a host that cannot be a name
        sock.close()
        raise Unreachable(str(failed)) from failed
    if error not in (0, errno.EINPROGRESS):
        sock.close()
        raise Unreachable(os.strerror(error))
    return sock


def send_welcome(
    sock: socket.socket, welcome: StreamWelcome, *, setup: bytes = b"", fds: Sequence[int] = ()
) -> None:
    """Answer a hello; `fds` ride along, over unix sockets, and are closed. Raises PeerLost."""
    try:
        packed = stream_welcome.encode(msgspec.structs.replace(welcome, setup=setup))
        send_message(sock, packed, fds)
    finally:
        close_fds(list(fds))


def kind_of(welcome: StreamWelcome) -> SumKind:
    """The checksum of all chunks of a stream. Raises Unreachable for one that is unknown here."""
    for kind in SUM_KINDS:
        if kind == welcome.sum_kind:
            return kind
    raise Unreachable(f"the source sums by {welcome.sum_kind!r}, which is not known here")


def pop_fd(fds: list[int]) -> int:
    """The one descriptor that must come with a welcome. Raises Unreachable."""
    return pop_fds(fds, num=1)[0]


def pop_fds(fds: list[int], *, num: int) -> list[int]:
    """Those that must come with a welcome, which are the caller's then. Raises Unreachable."""
    if len(fds) != num:
        raise Unreachable(f"{len(fds)} descriptors came with the welcome, not {num}")
    popped = fds.copy()
    fds.clear()
    return popped


class Port:
    """Where a source's streams arrive: what listeners have alike."""

    address: str
    _sock: socket.socket

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:  # nobody there, or gone again
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        self._sock.close()
