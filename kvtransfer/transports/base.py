"""What a data plane is: a stream between one source and one sink, and how it carries chunks.

A stream guarantees: its end of file means that the other process is gone or gave up, seen as
soon as the kernel knows; what it says of a chunk comes before what it says of the fetch's end;
it writes only where its taker let it, and says when it has stopped. It does not guarantee that
bytes are right (checksums do) or wanted (the session does), nor any order between chunks, between
streams, or between a stream and the control link. Errors are PeerLost (the other end is gone) and
WireError (it makes no sense); after either the stream is only closed.

Two ways of carrying: a *reading* stream tells the sink which pieces lie ready in the source's
memory, and the sink copies; on a *pushing* stream the source sends their bytes. To the session
both look the same. Called by `kvtransfer.visitors`, `kvtransfer.link` and the threads they run
on, each stream from one thread only.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_STREAM_WORD_BYTES,
    Chunk,
    FetchId,
    Finish,
    StreamHello,
    StreamWelcome,
    stream_hello,
    stream_welcome,
)
from kvtransfer.plan import Ranges
from protocol.codec import Codec
from protocol.errors import PeerLost, WireError

_LENGTH = struct.Struct("<I")
MAX_FDS = 4
"""Descriptors that may ride along with a first word."""
T = TypeVar("T")


class Unreachable(Exception):
    """This data plane cannot be used between these two processes; says why."""


class ChunkTaker(Protocol):
    """What a stream hands its chunks to: the sink's sessions."""

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        """Where its bytes go, which then have a writer; None to discard them. Raises WireError
        for what cannot be a chunk."""

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        """Its writer has stopped. `sums_P` are the checksums of the landed bytes; without them
        none is to be used, and `broken` says why."""

    def finished(self, word: Finish) -> None:
        """The source's last word on a fetch."""


class SinkStream(Protocol):
    """The fetcher's end of an open stream."""

    transport: str

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""

    def receive(self, taker: ChunkTaker) -> bool:
        """Take what has come, a bounded part of it; True when there is more to do at once.
        Raises PeerLost or WireError."""

    def stop_writing(self, fetch: FetchId) -> bool:
        """True: nothing of this fetch is written into any slot from now on, and its open chunks
        have been ended. False: a writer cannot be stopped now; `receive` ends its chunk later."""

    def close(self) -> bool:
        """Give everything back; answers as `stop_writing`, for all fetches. Idempotent; while it
        is False the owner goes on calling it."""


class SourceStream(Protocol):
    """The source's end of an open stream."""

    transport: str
    chunk_bytes: int
    """Most bytes it likes in one chunk."""

    @property
    def queued_bytes(self) -> int:
        """Offered and not yet sent; what a source goes by to offer more."""

    @property
    def awaits_room(self) -> bool:
        """`flush` could not send everything: call it again when `fileno` can be written."""

    def fileno(self) -> int: ...

    def receive(self) -> None:
        """Take in what the sink says here. Raises PeerLost at its end, WireError for nonsense."""

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        """A further socket of this stream, welcomed already. Raises WireError when unwanted."""

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        """These pieces are written at these ranges of our pool: announce or send them. They are
        read until sent, or until `drop`."""

    def finish(self, word: Finish) -> None:
        """Say this after everything offered before."""

    def flush(self) -> None:
        """Send what can be sent now. Raises PeerLost."""

    def drop(self, fetch: FetchId) -> None:
        """From now on nothing of this fetch is read from our pool."""

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


def send_word(sock: socket.socket, word: bytes, fds: Sequence[int] = ()) -> None:
    """Send one first word; a fresh socket always takes it whole. Raises PeerLost."""
    packed = _LENGTH.pack(len(word)) + word
    try:
        sent = socket.send_fds(sock, [packed], list(fds)) if fds else sock.send(packed)
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
                data, fds, _, _ = socket.recv_fds(sock, missing, MAX_FDS)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            self.fds.extend(fds)
            if len(self.fds) > MAX_FDS:
                raise WireError(f"{len(self.fds)} descriptors came with one word")
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
        fds, self._reader.fds = self._reader.fds, []
        try:
            return self._finish(self._sock, welcome, fds)
        except OSError as error:
            raise Unreachable(str(error)) from error

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
        send_word(self._sock, stream_hello.encode(self._hello), self._fds)
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
    address: str
    """What `Opened` says of it."""

    def fileno(self) -> int: ...

    def accept(self) -> socket.socket | None:
        """A new connection, non-blocking, its process checked; None when there is none. Raises
        OSError without a descriptor for it."""

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        """Turn a connection whose hello was right into a stream; takes what it keeps of the
        hello's `fds` out of the list. Raises PeerLost or WireError."""

    def close(self) -> None: ...


def accept_from(listening: socket.socket) -> socket.socket | None:
    try:
        sock, _ = listening.accept()
    except OSError as error:  # nobody there, or gone again
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    sock.setblocking(False)
    return sock


def close_fds(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
