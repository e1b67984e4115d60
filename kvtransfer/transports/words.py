"""Typed words over a stream socket: a length, then msgpack. Bounded both ways, never blocking.

Called by the data planes that announce chunks. Keeps order; knows no fetch.
"""

import socket
import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

from protocol.codec import Codec
from protocol.errors import PeerLost, WireError

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 << 10
_TURN_WORDS = 64
T = TypeVar("T")


class WordOutbox(Generic[T]):
    """Words that wait for room in a socket."""

    def __init__(self, sock: socket.socket, codec: Codec[T]) -> None:
        self._sock = sock
        self._codec = codec
        self._waiting = bytearray()

    @property
    def num_bytes(self) -> int:
        return len(self._waiting)

    def put(self, word: T) -> None:
        packed = self._codec.encode(word)
        self._waiting += _LENGTH.pack(len(packed)) + packed

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


class WordInbox(Generic[T]):
    """Words as they arrive, however they are cut."""

    def __init__(self, sock: socket.socket, codec: Codec[T], *, max_bytes: int) -> None:
        self._sock = sock
        self._codec = codec
        self._max_bytes = max_bytes
        self._waiting = bytearray()
        self.has_more = False
        """A whole word waits, or the socket may have more: come again without sleeping."""

    def receive(self) -> Iterator[T]:
        """A turn's worth of words. Raises PeerLost at the end, WireError for what is no word."""
        ended = self._read()
        for _ in range(_TURN_WORDS):
            word = self._take()
            if word is None:
                break
            yield word
        else:
            self.has_more = True
            return
        if ended:
            raise PeerLost("the other process closed its stream")

    def _read(self) -> bool:
        """Take in what has come; True at the end of the stream."""
        self.has_more = False
        if len(self._waiting) > self._max_bytes + _LENGTH.size:
            return False
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise PeerLost(f"the stream broke: {error}") from error
        self.has_more = len(data) == _READ_BYTES
        self._waiting += data
        return not data

    def _take(self) -> T | None:
        if len(self._waiting) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._waiting)
        if length > self._max_bytes:
            raise WireError(f"a word of {length} bytes exceeds {self._max_bytes}")
        end = _LENGTH.size + length
        if len(self._waiting) < end:
            return None
        word = self._codec.decode(bytes(self._waiting[_LENGTH.size : end]))
        del self._waiting[:end]
        return word
