"""Length-prefixed words on a socket, and the descriptors that ride along."""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from protocol.codec import Codec
from protocol.errors import PeerLost, WireError

_LENGTH = struct.Struct("<I")
_READ_BYTES = 256 << 10
_TURN_WORDS = 64
MAX_FDS = 4
"""Descriptors that may ride along with a first word."""

T = TypeVar("T")


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


def close_fds(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


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
