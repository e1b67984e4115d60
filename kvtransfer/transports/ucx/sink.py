"""The fetcher's end of a UCX stream: words on a socket, bytes through UCX straight into the pool.

It posts a receive for every message of a chunk that the source announces, and says so; only then
does the source send, so UCX never buffers what nobody awaits. The socket's end means the source's
death, whatever UCX knows of it. One receive cannot be cancelled, only all of a stream: the open
chunks of a fetch that ends arrive, or end with the stream.
"""

import socket
from collections import deque
from dataclasses import dataclass
from typing import Final, assert_never

from kvtransfer.chunk import Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    MAX_WORD_BYTES,
    Chunk,
    FetchId,
    Finish,
    Posted,
    Sending,
    Unwanted,
    ucx_to_sink,
    ucx_to_source,
)
from kvtransfer.transports.base import ChunkTaker
from kvtransfer.transports.framing import WordInbox, WordOutbox
from kvtransfer.transports.polling import Eyes
from kvtransfer.transports.ucx.cut import cut, joint_runs
from kvtransfer.transports.ucx.session import Broke, Moved, Proved, Ready
from kvtransfer.transports.ucx.thread import UcxWorker
from protocol.errors import PeerLost, WireError

NAME: Final = "ucx"
_MAX_OPEN: Final = 64
"""Chunks posted and not ended; further ones wait."""
_MAX_WAITING_BYTES: Final = 64 << 20
"""Of words that wait. An honest source stays below 16 MiB: it counts what is not answered."""
_WORD_BYTES: Final = 64
QUIET_S: Final = 0.02
"""What cancelling takes, and a hundred times that for a thread that waits for a core."""


@dataclass(slots=True, eq=False)
class _Arriving:
    """A chunk whose receives are posted."""

    number: int
    landing: Landing
    moved: bool = False
    whole: bool | None = None
    """What the source says; None while it has said nothing."""


class UcxSinkStream:
    def __init__(
        self, sock: socket.socket, eyes: Eyes, worker: UcxWorker, memory: BlockMemory
    ) -> None:
        """The worker has met its peer."""
        self.transport = NAME
        self._sock = sock
        self._eyes = eyes
        self._worker = worker
        self._memory = memory
        self._inbox = WordInbox(sock, ucx_to_sink, max_bytes=MAX_WORD_BYTES)
        self._outbox = WordOutbox(sock, ucx_to_source)
        self._num_announced = 0
        self._words: deque[Chunk | Finish] = deque()
        """Heard, and not taken up."""
        self._waiting_bytes = 0
        self._open: dict[int, _Arriving] = {}
        self._order: deque[_Arriving | Finish] = deque()
        self._closed = False
        eyes.watch()

    def fileno(self) -> int:
        return self._eyes.fileno()

    def receive(self, taker: ChunkTaker) -> bool:
        self._look()
        self._settle(taker)
        self._read()
        self._post(taker)
        self._settle(taker)
        self._outbox.flush()
        self._eyes.watch(writable=bool(self._outbox.num_bytes))
        return self._inbox.has_more or (bool(self._words) and self._has_room)

    def stop_writing(self, fetch: FetchId) -> bool:
        return all(arriving.landing.fetch != fetch for arriving in self._open.values())

    def close(self) -> bool:
        if not self._closed:
            self._closed = True
            self._eyes.close()
            self._sock.close()
        return self._worker.stop(wait_s=QUIET_S)

    def _look(self) -> None:
        for event in self._worker.events():
            match event:
                case Moved(number):
                    self._open[number].moved = True
                case Broke(why):
                    raise PeerLost(why)
                case Ready() | Proved():
                    pass
                case _:
                    assert_never(event)

    def _read(self) -> None:
        for word in self._inbox.receive():
            match word:
                case Chunk() | Finish():
                    self._waiting_bytes += _bytes_of(word)
                    if self._waiting_bytes > _MAX_WAITING_BYTES:
                        raise WireError("the source announces more than anyone can take")
                    self._words.append(word)
                case Sending(number=number, whole=whole):
                    arriving = self._open.get(number)
                    if arriving is None or arriving.whole is not None:
                        raise WireError(f"chunk {number} is sent, and was not posted")
                    arriving.whole = whole
                case _:
                    assert_never(word)

    @property
    def _has_room(self) -> bool:
        return len(self._order) < _MAX_OPEN

    def _post(self, taker: ChunkTaker) -> None:
        """Take up what was announced, as far as there is room for it."""
        while self._words and self._has_room:
            word = self._words.popleft()
            self._waiting_bytes -= _bytes_of(word)
            if isinstance(word, Finish):
                self._order.append(word)
            else:
                self._announced(word, taker)

    def _announced(self, chunk: Chunk, taker: ChunkTaker) -> None:
        number = self._num_announced
        self._num_announced += 1
        landing = taker.begin_chunk(chunk)
        if landing is None:
            self._outbox.put(Unwanted(number=number))
            return
        arriving = _Arriving(number, landing)
        self._open[number] = arriving
        self._order.append(arriving)
        runs_M = joint_runs(landing.source, landing.target)
        self._worker.move(cut(number, landing.target, runs_M), "receive")
        self._outbox.put(Posted(number=number, runs=runs_M.astype("<u4").tobytes()))

    def _settle(self, taker: ChunkTaker) -> None:
        """End what is complete, in the order in which it was announced."""
        while self._order:
            first = self._order[0]
            if isinstance(first, _Arriving) and (not first.moved or first.whole is None):
                return
            self._order.popleft()
            if isinstance(first, Finish):
                taker.finished(first)
            else:
                self._end(first, taker)

    def _end(self, arriving: _Arriving, taker: ChunkTaker) -> None:
        landing = arriving.landing
        del self._open[arriving.number]
        if arriving.whole:
            taker.end_chunk(landing, self._memory.checksums(landing.target))
        else:
            taker.end_chunk(landing, None, broken="the source took it back")


def _bytes_of(word: Chunk | Finish) -> int:
    if isinstance(word, Finish):
        return len(word.note) + _WORD_BYTES
    return len(word.pieces) + len(word.blocks) + _WORD_BYTES
