"""The sink's end of a UCX stream: messages on a socket, bytes through UCX straight into the pool.

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
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.transports.base import ChunkTaker, SinkStream
from kvtransfer.transports.framing import MessageInbox, MessageOutbox
from kvtransfer.transports.polling import FdPoller, Polled
from kvtransfer.transports.ucx.cut import cut_ranges, joint_runs
from kvtransfer.transports.ucx.messages import (
    NAME,
    Posted,
    Sending,
    Unwanted,
    ucx_to_sink,
    ucx_to_source,
)
from kvtransfer.transports.ucx.session import PeerReached, RangesMoved, SessionBroke, WorkerUp
from kvtransfer.transports.ucx.thread import QUIET_S, UcxWorker
from protocol.errors import PeerLost, WireError

_MAX_OPEN: Final = 64
"""Chunks posted and not ended; further ones wait."""
_MAX_WAITING_BYTES: Final = 64 << 20
"""Of messages that wait. An honest source stays below 16 MiB: it counts what is not answered."""
_MESSAGE_BYTES: Final = 64


@dataclass(slots=True, eq=False)
class _PostedChunk:
    """A chunk whose receives are posted."""

    number: int
    landing: Landing
    moved: bool = False
    whole: bool | None = None
    """What the source says; None while it has said nothing."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UcxSinkSetup:
    """What the sink's dial made; its stream owns both."""

    worker: UcxWorker
    """Told to connect."""
    poller: FdPoller
    """Watches the worker's events."""


class UcxSinkStream(Polled, SinkStream):
    transport = NAME

    def __init__(self, sock: socket.socket, memory: BlockMemory, setup: UcxSinkSetup) -> None:
        self._sock = sock
        self._memory = memory
        self._worker = setup.worker
        self._poller = setup.poller
        self._inbox = MessageInbox(sock, ucx_to_sink)
        self._outbox = MessageOutbox(sock, ucx_to_source)
        self._num_announced = 0
        self._waiting: deque[Chunk | Finish] = deque()
        """Heard, and not taken up."""
        self._waiting_bytes = 0
        self._open: dict[int, _PostedChunk] = {}
        self._order: deque[_PostedChunk | Finish] = deque()
        self._closed = False
        self._poller.watch(sock.fileno())

    def receive(self, taker: ChunkTaker) -> bool:
        self._look()
        self._settle(taker)
        self._read()
        self._post(taker)
        self._settle(taker)
        self._outbox.flush()
        self._poller.watch(self._sock.fileno(), writable=bool(self._outbox.num_bytes))
        return self._inbox.has_more or (bool(self._waiting) and self._has_room)

    def stop_writing(self, fetch: FetchId) -> bool:
        return all(arriving.landing.fetch != fetch for arriving in self._open.values())

    def close(self) -> bool:
        if not self._closed:
            self._closed = True
            self._poller.close()
            self._sock.close()
        return self._worker.stop(wait_s=QUIET_S)

    def _look(self) -> None:
        for event in self._worker.events():
            match event:
                case RangesMoved(number):
                    self._open[number].moved = True
                case SessionBroke(why):
                    raise PeerLost(why)
                case WorkerUp() | PeerReached():
                    pass
                case _:
                    assert_never(event)

    def _read(self) -> None:
        for message in self._inbox.receive():
            match message:
                case Chunk() | Finish():
                    self._waiting_bytes += _bytes_of(message)
                    if self._waiting_bytes > _MAX_WAITING_BYTES:
                        raise WireError("the source announces more than anyone can take")
                    self._waiting.append(message)
                case Sending(number=number, whole=whole):
                    arriving = self._open.get(number)
                    if arriving is None or arriving.whole is not None:
                        raise WireError(f"chunk {number} is sent, and was not posted")
                    arriving.whole = whole
                case _:
                    assert_never(message)

    @property
    def _has_room(self) -> bool:
        return len(self._order) < _MAX_OPEN

    def _post(self, taker: ChunkTaker) -> None:
        """Take up what was announced, as far as there is room for it."""
        while self._waiting and self._has_room:
            message = self._waiting.popleft()
            self._waiting_bytes -= _bytes_of(message)
            if isinstance(message, Finish):
                self._order.append(message)
            else:
                self._announced(message, taker)

    def _announced(self, chunk: Chunk, taker: ChunkTaker) -> None:
        number = self._num_announced
        self._num_announced += 1
        landing = taker.begin_chunk(chunk)
        if landing is None:
            self._outbox.put_message(Unwanted(number=number))
            return
        arriving = _PostedChunk(number, landing)
        self._open[number] = arriving
        self._order.append(arriving)
        runs_M = joint_runs(landing.source, landing.target)
        self._worker.move_ranges(cut_ranges(number, landing.target, runs_M), "receive")
        self._outbox.put_message(Posted(number=number, runs=runs_M.astype("<u4").tobytes()))

    def _settle(self, taker: ChunkTaker) -> None:
        """End what is complete, in the order in which it was announced."""
        while self._order:
            first = self._order[0]
            if isinstance(first, _PostedChunk) and (not first.moved or first.whole is None):
                return
            self._order.popleft()
            if isinstance(first, Finish):
                taker.finished(first)
            else:
                self._end(first, taker)

    def _end(self, arriving: _PostedChunk, taker: ChunkTaker) -> None:
        landing = arriving.landing
        del self._open[arriving.number]
        if arriving.whole:
            taker.end_chunk(landing, self._memory.checksums(landing.target))
        else:
            taker.end_chunk(landing, None, broken="the source took it back")


def _bytes_of(message: Chunk | Finish) -> int:
    if isinstance(message, Finish):
        return len(message.note) + _MESSAGE_BYTES
    return len(message.pieces) + len(message.blocks) + _MESSAGE_BYTES
