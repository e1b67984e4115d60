"""Connecting and being connected to, without a wait: what all stream planes share."""

import errno
import os
import socket
from collections.abc import Callable, Sequence

from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_STREAM_WORD_BYTES,
    StreamHello,
    StreamWelcome,
    stream_hello,
    stream_welcome,
)
from kvtransfer.transports.base import SinkStream, Unreachable
from kvtransfer.transports.framing import FirstMessage, close_fds, send_message
from protocol.errors import PeerLost, WireError


def end_of(sock: socket.socket) -> None:
    """Look whether the peer has gone, on a stream on which it has nothing to say."""
    try:
        data = sock.recv(1)
    except (BlockingIOError, InterruptedError):
        return
    except OSError as error:
        raise PeerLost(f"the stream broke: {error}") from error
    if data:
        raise WireError("unexpected bytes on a data stream")
    raise PeerLost("the other process closed its stream")


Finisher = Callable[[socket.socket, StreamWelcome, list[int]], SinkStream]
"""Makes a stream of a connection that was welcomed; takes what it keeps of the welcome's
descriptors out of the list. Raises Unreachable or OSError."""


class Dial:
    """A stream on its way up, at the sink: connect, say hello, await the welcome."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        transport: str,
        hello: StreamHello,
        finish: Finisher,
        fds: Sequence[int] = (),
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        """`sock` is non-blocking, and connected or connecting; it is ours from here on. `fds`
        ride along with the hello, over unix sockets, and stay the caller's; `give_up` is called
        when the stream does not come up."""
        self.transport = transport
        self.writable = True
        """Still connecting: look again when the socket can be written."""
        self._sock = sock
        self._hello = hello
        self._finish = finish
        self._fds = fds
        self._give_up = give_up
        self._reader = FirstMessage(MAX_STREAM_WORD_BYTES)

    def fileno(self) -> int:
        return self._sock.fileno()

    def advance(self) -> SinkStream | None:
        """The stream, or None while it is not up. Raises Unreachable; then call `close`."""
        try:
            if self.writable and not self._connected():
                return None
            welcome = self._reader.read(self._sock, stream_welcome)
        except (PeerLost, WireError) as error:
            raise Unreachable(str(error)) from error
        if welcome is None:
            return None
        if welcome.version != CONTROL_VERSION or welcome.epoch != self._hello.epoch:
            raise Unreachable("another incarnation or version listens there")
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


def pop_fd(fds: list[int]) -> int:
    """The one descriptor that must come with a welcome. Raises Unreachable."""
    if len(fds) != 1:
        raise Unreachable(f"{len(fds)} descriptors came with the welcome")
    return fds.pop()


def accept_from(listening: socket.socket) -> socket.socket | None:
    """A new connection, non-blocking; None when there is none. Raises OSError without a descriptor
    for it."""
    try:
        sock, _ = listening.accept()
    except OSError as error:  # nobody there, or gone again
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    sock.setblocking(False)
    return sock
