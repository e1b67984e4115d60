"""Streams whose sink copies from the source's memory: the source announces, the sink copies.

Shared by `shm` and `memory`. Where both processes have a core to spare, the source copies pieces of
a large chunk too (`kvtransfer.transports.shm.copy_job`); then it writes into slots that the sink
named, and the sink ends a chunk only when the source has left it.
"""

import select
import socket
from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.pool import generation_sums
from kvtransfer.messages import (
    MAX_WORD_BYTES,
    Chunk,
    FetchId,
    Finish,
    Help,
    Left,
    help_word,
    stream_word,
)
from kvtransfer.plan import NO_BLOCK, Ranges
from kvtransfer.transports.base import ChunkTaker
from kvtransfer.transports.framing import WordInbox, WordOutbox
from kvtransfer.transports.shm.copy_job import Board
from kvtransfer.transports.shm.helper import Helper
from protocol.errors import WireError

CHUNK_BYTES: Final = 32 << 20
"""2 ms of copying by two, against 0.3 ms that a chunk costs. Of 16, 32 and 64 MiB: 13.9, 14.6 and
14.7 GB/s (512 MiB of 32 KiB blocks); at 64 MiB in all 9.9, 10.9 and 10.5."""
_HELPED_BYTES: Final = 1 << 20
"""Smaller chunks are copied before a helper would have woken up."""
_AWAIT_S: Final = 0.001
"""A helper's last claim takes 20 us; one that lost its core is waited for asleep."""
_HELP_WORD_BYTES: Final = 64
_STALE: Final = "the block has another generation"


class ReadingStream:
    """The sink's end. Owns its view of the source's pool and the board."""

    def __init__(
        self, sock: socket.socket, transport: str, *, source: BlockMemory,
        memory: BlockMemory, board: Board | None,
    ) -> None:  # fmt: skip
        """`memory` is our own pool. Without a `board` chunks are copied by us alone."""
        self.transport = transport
        self._source: BlockMemory | None = source
        self._memory = memory
        self._board = board
        self._sock = sock
        self._inbox = WordInbox(sock, stream_word, max_bytes=MAX_WORD_BYTES)
        self._outbox = WordOutbox(sock, help_word)
        self._words: deque[Chunk | Finish] = deque()
        self._shared: Landing | None = None
        """The chunk on the board, begun and not ended."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, taker: ChunkTaker) -> bool:
        if self._shared is not None:
            self._look_at_board(taker)
        for word in self._inbox.receive():
            match word:
                case Chunk() | Finish():
                    self._words.append(word)
                case Left():
                    pass  # the board says the same
        if self._shared is not None:
            self._look_at_board(taker)  # the word may have come since: no other will
        num_bytes = 0
        while self._words and self._shared is None and num_bytes < CHUNK_BYTES:
            num_bytes += self._take(self._words.popleft(), taker)
        return self._inbox.has_more or (self._shared is None and bool(self._words))

    def stop_writing(self, fetch: FetchId) -> bool:
        return self._shared is None or self._shared.fetch != fetch or self._stopped()

    def close(self) -> bool:
        if self._source is None:
            return True
        if self._shared is not None and not self._stopped():
            return False
        self._sock.close()
        self._source.close()
        self._source = None
        if self._board is not None:
            self._board.close()
        return True

    def _take(self, word: Chunk | Finish, taker: ChunkTaker) -> int:
        """Do what a word asks for; bytes copied."""
        if isinstance(word, Finish):
            taker.finished(word)
            return 0
        landing = taker.begin_chunk(word)
        if landing is None:
            return 0
        why = self._why_not(landing)
        if why:
            taker.end_chunk(landing, None, broken=why)
            return 0
        if self._is_shared(landing):
            self._share(landing, taker)
        else:
            self._copy(landing, taker)
        return landing.num_bytes

    def _copy(self, landing: Landing, taker: ChunkTaker) -> None:
        assert self._source is not None
        try:
            sums_P = self._memory.copy_from(self._source, landing.source, landing.target)
        except ValueError as error:
            raise WireError(f"the source's pool is not what its layout says: {error}") from error
        self._end(landing, sums_P, taker)

    def _is_shared(self, landing: Landing) -> bool:
        board = self._board
        return board is not None and landing.num_bytes >= _HELPED_BYTES and board.takes(landing)

    def _share(self, landing: Landing, taker: ChunkTaker) -> None:
        """Put the chunk on the board, tell the source, and copy what it does not."""
        assert self._board is not None and self._source is not None
        number = self._board.begin(landing)
        if number is None:
            self._copy(landing, taker)
            return
        self._outbox.put(Help(number=number))
        self._outbox.flush()
        self._shared = landing
        try:
            self._board.work(number, target=self._memory.span, source=self._source.span)
        except ValueError as error:
            raise WireError(str(error)) from error
        if self._board.wait(_AWAIT_S):
            self._look_at_board(taker)

    def _look_at_board(self, taker: ChunkTaker) -> None:
        """End the shared chunk if everything of it is done, or everybody has left it."""
        landing, board = self._shared, self._board
        assert landing is not None and board is not None
        if board.wait(0.0):
            self._shared = None
            self._end(landing, board.sums(len(landing.pieces_P)), taker)
        elif board.stopping and board.stop():
            self._shared = None
            taker.end_chunk(landing, None, broken="it was stopped")

    def _stopped(self) -> bool:
        """Ask the source to leave our pool; True when it has, or is dead."""
        assert self._board is not None
        return self._board.stop() or self._has_ended()

    def _has_ended(self) -> bool:
        """The other process is gone: the kernel closes its socket after its memory. What it said
        last may still wait to be read."""
        if self._sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _why_not(self, landing: Landing) -> str:
        """Why this chunk's blocks cannot be read now; empty when they can."""
        source = self._source
        assert source is not None
        blocks_PB = landing.blocks_PB
        if blocks_PB.shape[1] > 1:
            blocks_PB = blocks_PB[blocks_PB != NO_BLOCK]
        if int(blocks_PB.max(initial=0)) >= source.num_blocks:
            return "the source named a block that it has not"
        return "" if self._unchanged(landing) else _STALE

    def _unchanged(self, landing: Landing) -> bool:
        """The blocks have the generations that their descriptions say."""
        assert self._source is not None
        now_P = generation_sums(self._source.generations_N, landing.blocks_PB)
        return bool((now_P == landing.pieces_P["generation"]).all())

    def _end(self, landing: Landing, sums_P: NDArray[np.uint64], taker: ChunkTaker) -> None:
        if self._unchanged(landing):
            taker.end_chunk(landing, sums_P)
        else:
            taker.end_chunk(landing, None, broken=_STALE)


class AnnouncingStream:
    """The source's end: says what lies ready, and helps to copy it when asked and idle."""

    chunk_bytes = CHUNK_BYTES

    def __init__(self, sock: socket.socket, transport: str, *, helper: Helper | None) -> None:
        self.transport = transport
        self._sock = sock
        self._inbox = WordInbox(sock, help_word, max_bytes=_HELP_WORD_BYTES)
        self._outbox = WordOutbox(sock, stream_word)
        self._helper = helper

    @property
    def queued_bytes(self) -> int:
        return self._outbox.num_bytes

    @property
    def awaits_room(self) -> bool:
        return bool(self._outbox.num_bytes)

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> None:
        for word in self._inbox.receive():
            if self._helper is None:
                raise WireError("help was asked for that was not offered")
            self._helper.help(word.number)
            self._outbox.put(Left(number=word.number))
        self._outbox.flush()

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        raise WireError(f"{self.transport} has one socket")

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        self._outbox.put(chunk)

    def finish(self, word: Finish) -> None:
        self._outbox.put(word)

    def flush(self) -> None:
        self._outbox.flush()

    def drop(self, fetch: FetchId) -> None:
        """Only while it helps does this process read the pool for a fetch, and not now."""

    def close(self) -> None:
        self._sock.close()
        if self._helper is not None:
            self._helper.close()
