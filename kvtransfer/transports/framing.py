"""Length-prefixed messages on a stream socket, and the descriptors that ride along.

Bytes are cut into messages in one place, `MessageCutter`; what differs is how they are read: a
first message and never a byte beyond it, whatever has come, or however the caller likes.
"""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from protocol.codec import Codec
from protocol.errors import PeerLost, WireError

_LENGTH: Final = struct.Struct("<I")
_READ_BYTES: Final = 256 << 10
_TURN_MESSAGES: Final = 64
MAX_FDS: Final = 4
"""Descriptors that may ride along with a first message."""

MessageT = TypeVar("MessageT")


def framed(packed: bytes) -> bytes:
    """A packed message as it stands on a socket."""
    return _LENGTH.pack(len(packed)) + packed


class MessageCutter:
    """Cuts packed messages out of bytes, however those come."""

    def __init__(self, *, max_bytes: int) -> None:
        """`max_bytes` is the most that one message may have."""
        self._max_bytes = max_bytes
        self._waiting = bytearray()

    @property
    def num_bytes(self) -> int:
        """Added and not popped."""
        return len(self._waiting)

    def add_bytes(self, data: bytes) -> None:
        self._waiting += data

    def num_missing(self) -> int:
        """Bytes that the next message surely lacks, or 0. Raises WireError beyond the bound."""
        if len(self._waiting) < _LENGTH.size:
            return _LENGTH.size - len(self._waiting)
        return max(0, self._end() - len(self._waiting))

    def pop_message(self) -> bytes | None:
        """The next message, or None while it is not whole. Raises WireError as `num_missing`."""
        if len(self._waiting) < _LENGTH.size or len(self._waiting) < (end := self._end()):
            return None
        packed = bytes(self._waiting[_LENGTH.size : end])
        del self._waiting[:end]
        return packed

    def _end(self) -> int:
        (length,) = _LENGTH.unpack_from(self._waiting)
        if length > self._max_bytes:
            raise WireError(f"a message of {length} bytes exceeds {self._max_bytes}")
        return int(length) + _LENGTH.size


def send_message(sock: socket.socket, packed: bytes, fds: Sequence[int] = ()) -> None:
    """Send one first message; a fresh socket always takes it whole. Raises PeerLost."""
    data = framed(packed)
    try:
        sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
    except OSError as error:
        raise PeerLost(f"the stream broke: {error}") from error
    if sent != len(data):
        raise PeerLost(f"a fresh stream took {sent} of {len(data)} bytes")


class FirstMessage(Generic[MessageT]):
    """Reads one first message, however it is cut, and never a byte beyond it."""

    def __init__(self, codec: Codec[MessageT]) -> None:
        self._codec = codec
        self._cutter = MessageCutter(max_bytes=codec.max_bytes)
        self.fds: list[int] = []
        """Descriptors that rode along; whoever takes the message owns them."""

    def read(self, sock: socket.socket) -> MessageT | None:
        """The message, or None while it is not whole. Raises PeerLost or WireError."""
        while (missing := self._cutter.num_missing()) > 0:
            try:
                data, fds, _, _ = socket.recv_fds(sock, missing, MAX_FDS)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            self.fds.extend(fds)
            if len(self.fds) > MAX_FDS:
                raise WireError(f"{len(self.fds)} descriptors came with one message")
            if not data:
                raise PeerLost("the other process closed its stream")
            self._cutter.add_bytes(data)
        packed = self._cutter.pop_message()
        assert packed is not None
        return self._codec.decode(packed)


def received(sock: socket.socket, num_bytes: int) -> bytes | None:
    """At most so many bytes; empty at the end, None when nothing has come. Raises PeerLost."""
    try:
        return sock.recv(num_bytes)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as error:
        raise PeerLost(f"the stream broke: {error}") from error


def close_fds(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


class MessageOutbox(Generic[MessageT]):
    """Messages that wait for room in a socket."""

    def __init__(self, sock: socket.socket, codec: Codec[MessageT]) -> None:
        self._sock = sock
        self._codec = codec
        self._waiting = bytearray()

    @property
    def num_bytes(self) -> int:
        return len(self._waiting)

    def put_message(self, message: MessageT) -> None:
        self._waiting += framed(self._codec.encode(message))

    def flush(self) -> None:
        """Send what the socket takes now. Raises PeerLost."""
        while self._waiting:
            try:
                sent = self._sock.send(self._waiting)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            del self._waiting[:sent]


class MessageInbox(Generic[MessageT]):
    """Messages as they arrive, however they are cut."""

    def __init__(self, sock: socket.socket, codec: Codec[MessageT]) -> None:
        self._sock = sock
        self._codec = codec
        self._cutter = MessageCutter(max_bytes=codec.max_bytes)
        self._max_waiting_bytes = codec.max_bytes + _LENGTH.size
        self.has_more = False
        """A whole message waits, or the socket may have more: come again without sleeping."""

    def receive(self) -> Iterator[MessageT]:
        """A turn's worth of messages. Raises PeerLost at the end, WireError for what is none."""
        ended = self._read()
        for _ in range(_TURN_MESSAGES):
            packed = self._cutter.pop_message()
            if packed is None:
                break
            yield self._codec.decode(packed)
        else:
            self.has_more = True
            return
        if ended:
            raise PeerLost("the other process closed its stream")

    def _read(self) -> bool:
        """Take in what has come; True at the end of the stream."""
        self.has_more = False
        if self._cutter.num_bytes > self._max_waiting_bytes:
            return False
        data = received(self._sock, _READ_BYTES)
        if data is None:
            return False
        self.has_more = len(data) == _READ_BYTES
        self._cutter.add_bytes(data)
        return not data
