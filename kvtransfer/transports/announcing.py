"""A source that only announces: it says which pieces lie ready, and its sink copies them.

The source's end and the messages of the reading planes. What else a plane's source does for its
sink is that plane's own.
"""

import socket
from typing import Final

import msgspec

from kvtransfer.messages import MAX_STREAM_MESSAGE_BYTES, Chunk, FetchId, Finish, Id
from kvtransfer.plan import Ranges
from kvtransfer.transports.base import SourceStream
from kvtransfer.transports.dial import check_for_end
from kvtransfer.transports.framing import MessageOutbox
from protocol.codec import Codec


class Left(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    """The source works on this job no more."""

    number: Id


Announcement = Chunk | Finish | Left
announcement: Final[Codec[Announcement]] = Codec(Announcement, max_bytes=MAX_STREAM_MESSAGE_BYTES)


class AnnouncingStream(SourceStream):
    """A plane's source stream inherits it, and adds `transport` and `chunk_bytes`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._outbox = MessageOutbox(sock, announcement)

    @property
    def queued_bytes(self) -> int:
        return self._outbox.num_bytes

    @property
    def awaits_room(self) -> bool:
        return bool(self._outbox.num_bytes)

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> None:
        check_for_end(self._sock)

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        self._outbox.put_message(chunk)

    def finish(self, message: Finish) -> None:
        self._outbox.put_message(message)

    def flush(self) -> None:
        self._outbox.flush()

    def drop(self, fetch: FetchId) -> None:
        """Nothing is read from the pool outside `receive`."""

    def close(self) -> None:
        self._sock.close()
