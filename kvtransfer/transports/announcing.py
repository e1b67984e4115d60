"""A source that only announces: it says which pieces lie ready, and its sink copies them.

The source's end and the messages of the reading planes, and what their sinks check of blocks. What
else a plane's source does for its sink is that plane's own.
"""

import socket
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.memory.pool import generation_sums
from kvtransfer.messages import MAX_STREAM_MESSAGE_BYTES, Chunk, FetchId, Finish, Id
from kvtransfer.plan import NO_BLOCK, Ranges
from kvtransfer.transports.base import SourceStream
from kvtransfer.transports.dial import check_for_end
from kvtransfer.transports.framing import MessageOutbox
from protocol.codec import Codec


class Left(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    """The source works on this job no more."""

    number: Id


class Staged(msgspec.Struct, frozen=True, kw_only=True, tag=5):
    """This chunk lies whole in the source's staging, piece after piece. Answered by `Taken`."""

    chunk: Chunk
    offset: Id
    """Of its first byte there."""


Announcement = Chunk | Finish | Left | Staged
announcement: Final[Codec[Announcement]] = Codec(Announcement, max_bytes=MAX_STREAM_MESSAGE_BYTES)


def why_not_read(landing: Landing, generations_N: NDArray[np.uint64]) -> str:
    """Why this chunk is not to be read from a pool of these generations; empty when it is."""
    blocks_PB = landing.blocks_PB
    if blocks_PB.shape[1] > 1:
        blocks_PB = blocks_PB[blocks_PB != NO_BLOCK]
    if int(blocks_PB.max(initial=0)) >= len(generations_N):
        return "the source named a block that it has not"
    return why_stale(landing, generations_N)


def why_stale(landing: Landing, generations_N: NDArray[np.uint64]) -> str:
    """Why what was read is not what the source described, of blocks that its pool has."""
    now_P = generation_sums(generations_N, landing.blocks_PB)
    same = (now_P == landing.pieces_P["generation"]).all()
    return "" if same else "the block has another generation"


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
