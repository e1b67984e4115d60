"""What a data plane is: a stream between one source and one sink, and how it carries blocks.

A stream guarantees: its end of file means that the other process is gone or gave up, seen as
soon as the kernel knows; blocks of one fetch come in the order they were offered. It does not
guarantee that a block's bytes are right (the checksum does) or wanted (the session does), nor
any order between streams, or between a stream and the control link.

Two ways of carrying: a *reading* stream lets the sink copy from the source's memory when a
`Ready` names a block; a *pushing* stream has the source send frames, which the sink writes into
the slot itself, so it always knows when writing has stopped. Called by `kvtransfer.source`,
`kvtransfer.link` and `kvtransfer.sink`, each stream from one thread only.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol, TypeVar

from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_STREAM_WORD_BYTES,
    Descriptor,
    FetchId,
    StreamHello,
    StreamWelcome,
    stream_hello,
    stream_welcome,
)
from kvtransfer.pool import BlockMemory
from protocol.codec import Codec
from protocol.errors import PeerLost, WireError

_LENGTH = struct.Struct("<I")
T = TypeVar("T")


class Unreachable(Exception):
    """This data plane cannot be used between these two processes; says why."""


class FrameTaker(Protocol):
    """What a pushing stream hands its frames to: the sink's sessions."""

    def begin_frame(
        self, fetch: FetchId, attempt: int, slot_block: int, block: Descriptor
    ) -> memoryview | None:
        """The slot to write into, or None to discard the bytes."""

    def end_frame(self, fetch: FetchId, block: Descriptor) -> None:
        """The slot's bytes are complete, not verified."""


class SinkStream(Protocol):
    """The fetcher's end of an open stream."""

    transport: str
    memory: BlockMemory | None
    """The source's pool, of a reading stream."""

    def fileno(self) -> int: ...

    def receive(self, taker: FrameTaker) -> None:
        """Take what has come, a bounded part of it. Raises PeerLost or WireError."""

    def stop_writing(self, fetch: FetchId) -> None:
        """From now on nothing of this fetch is written into any slot."""

    def close(self) -> None: ...


class SourceStream(Protocol):
    """The source's end of an open stream."""

    transport: str
    pushes: bool

    def fileno(self) -> int: ...

    def receive(self) -> None:
        """The sink says nothing here: raises PeerLost at its end, WireError if it speaks."""

    def push(
        self, fetch: FetchId, attempt: int, slot_block: int, block: Descriptor, body: memoryview
    ) -> None:
        """Queue one block. `body` is read until it is sent or `drop` is called."""

    @property
    def queued_bytes(self) -> int: ...

    def flush(self) -> None:
        """Send what the socket takes now. Raises PeerLost."""

    def drop(self, fetch: FetchId) -> None:
        """From now on nothing of this fetch is read from the pool."""

    def close(self) -> None: ...


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


def send_word(sock: socket.socket, word: bytes) -> None:
    """Send one short first word; a fresh socket always takes it whole. Raises PeerLost."""
    packed = _LENGTH.pack(len(word)) + word
    try:
        sent = sock.send(packed)
    except OSError as error:
        raise PeerLost(f"the stream broke: {error}") from error
    if sent != len(packed):
        raise PeerLost(f"a fresh stream took {sent} of {len(packed)} bytes")


class WordReader:
    """Reads one first word, however it is cut, and never a byte beyond it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self.fds: list[int] = []
        """Descriptors that rode along; whoever takes the word owns them."""

    def read(self, sock: socket.socket, codec: Codec[T]) -> T | None:
        """The word, or None while it is not whole. Raises PeerLost or WireError."""
        while (missing := self._missing()) > 0:
            try:
                data, fds, _, _ = socket.recv_fds(sock, missing, 1)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            self.fds.extend(fds)
            if not data:
                raise PeerLost("the other process closed its stream")
            self._buffer += data
        return codec.decode(bytes(self._buffer[_LENGTH.size :]))

    def _missing(self) -> int:
        if len(self._buffer) < _LENGTH.size:
            return _LENGTH.size - len(self._buffer)
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._max_bytes:
            raise WireError(f"first word of {length} bytes exceeds {self._max_bytes}")
        return int(length) + _LENGTH.size - len(self._buffer)


class Dial:
    """A stream on its way up, at the sink: connect, say hello, await the welcome."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        transport: str,
        hello: StreamHello,
        finish: Callable[[socket.socket, StreamWelcome, list[int]], SinkStream],
    ) -> None:
        """`sock` is non-blocking, and connected or connecting; it is ours from here on."""
        self.transport = transport
        self.writable = True
        """Still connecting: look again when the socket can be written."""
        self._sock = sock
        self._hello = hello
        self._finish = finish
        self._reader = WordReader(MAX_STREAM_WORD_BYTES)

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
        if welcome.block_bytes != self._hello.block_bytes:
            raise Unreachable(f"its blocks have {welcome.block_bytes} bytes")
        fds, self._reader.fds = self._reader.fds, []
        return self._finish(self._sock, welcome, fds)

    def close(self) -> None:
        close_fds(self._reader.fds)
        self._sock.close()

    def _connected(self) -> bool:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise Unreachable(os.strerror(error))
        try:
            self._sock.getpeername()
        except OSError:
            return False
        self.writable = False
        send_word(self._sock, stream_hello.encode(self._hello))
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


class Listener(Protocol):
    """Where sinks' streams arrive, at the source."""

    transport: str

    def fileno(self) -> int: ...

    def accept(self) -> socket.socket | None:
        """A new connection, non-blocking, its process checked; None when there is none."""

    def welcome(self, sock: socket.socket, word: StreamWelcome) -> SourceStream:
        """Turn a connection whose hello was right into a stream. Raises PeerLost."""

    def close(self) -> None: ...


def accept_from(listening: socket.socket) -> socket.socket | None:
    try:
        sock, _ = listening.accept()
    except OSError:  # nobody there, gone again, or out of descriptors: the next turn tells
        return None
    sock.setblocking(False)
    return sock


def close_fds(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
