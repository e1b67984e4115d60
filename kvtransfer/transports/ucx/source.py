"""The source's end of a UCX stream: announces chunks, and sends those that the sink has posted
straight from the pool.

A message that UCX has been given cannot be recalled: it is read to its end, and its checksum tells
if its block was changed meanwhile.
"""

import socket
from dataclasses import dataclass
from typing import Final, assert_never

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, FetchId, Finish, StreamWelcome
from kvtransfer.plan import Ranges
from kvtransfer.transports.base import SourceStream
from kvtransfer.transports.dial import send_welcome
from kvtransfer.transports.framing import MessageInbox, MessageOutbox
from kvtransfer.transports.polling import Polled
from kvtransfer.transports.ucx.cut import cut_ranges, runs_of
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

CHUNK_BYTES: Final = 1 << 20
"""Four of them are under way at a time: what a source queues."""
_LEAST_BYTES: Final = 64 << 10
"""What a smaller chunk counts for, so that few are under way."""


@dataclass(slots=True, eq=False)
class _UnansweredChunk:
    """A chunk that the sink has not answered yet."""

    fetch: FetchId
    ranges: Ranges
    num_bytes: int
    dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UcxSourceSetup:
    """Whom the source's end greets, and how."""

    welcome: StreamWelcome
    """Sent once our own worker is up."""
    peer: bytes
    """The sink's worker, as its hello says."""


class UcxSourceStream(Polled, SourceStream):
    transport = NAME
    chunk_bytes = CHUNK_BYTES

    def __init__(self, sock: socket.socket, memory: BlockMemory, setup: UcxSourceSetup) -> None:
        """Raises OSError without a descriptor."""
        self._sock = sock
        self._welcome: StreamWelcome | None = setup.welcome
        self._worker = UcxWorker(memory.blocks)
        self._poller = self._worker.poller()
        self._worker.connect_peer(setup.peer, probe="send")
        self._inbox = MessageInbox(sock, ucx_to_source)
        self._outbox = MessageOutbox(sock, ucx_to_sink)
        self._num_offered = 0
        self._offered: dict[int, _UnansweredChunk] = {}
        self._sending: dict[int, int] = {}
        """Bytes of each chunk that UCX has been given."""
        self._poller.watch(sock.fileno())

    @property
    def queued_bytes(self) -> int:
        offered = sum(each.num_bytes for each in self._offered.values())
        return self._outbox.num_bytes + offered + sum(self._sending.values())

    def receive(self) -> None:
        for event in self._worker.events():
            match event:
                case WorkerUp(address):
                    self._greet(address)
                case RangesMoved(number):
                    del self._sending[number]
                case SessionBroke(why):
                    raise PeerLost(why)
                case PeerReached():
                    pass
                case _:
                    assert_never(event)
        self._hear()
        while self._inbox.has_more:  # at most an answer for each chunk that is offered
            self._hear()
        self.flush()

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        num_bytes = max(int(ranges.sizes_R.sum()), _LEAST_BYTES)
        offered = _UnansweredChunk(FetchId(chunk.fetch), ranges, num_bytes)
        self._offered[self._num_offered] = offered
        self._num_offered += 1
        self._outbox.put_message(chunk)

    def finish(self, message: Finish) -> None:
        self._outbox.put_message(message)

    def flush(self) -> None:
        self._outbox.flush()
        self._poller.watch(self._sock.fileno(), writable=bool(self._outbox.num_bytes))

    def drop(self, fetch: FetchId) -> None:
        """What UCX has been given is read to its end; its checksums tell if it was changed."""
        for offered in self._offered.values():
            offered.dropped = offered.dropped or offered.fetch == fetch

    def close(self) -> None:
        self._poller.close()
        self._sock.close()
        self._worker.stop(wait_s=QUIET_S)

    def _greet(self, address: bytes) -> None:
        assert self._welcome is not None
        welcome, self._welcome = self._welcome, None
        send_welcome(self._sock, welcome, setup=address)

    def _hear(self) -> None:
        for message in self._inbox.receive():
            match message:
                case Posted():
                    self._send(message)
                case Unwanted(number=number):
                    self._pop_unanswered(number)
                case _:
                    assert_never(message)

    def _pop_unanswered(self, number: int) -> _UnansweredChunk:
        offered = self._offered.pop(number, None)
        if offered is None:
            raise WireError(f"chunk {number} was answered, and not offered")
        return offered

    def _send(self, posted: Posted) -> None:
        number, offered = posted.number, self._pop_unanswered(posted.number)
        runs_M = runs_of(posted.runs, offered.ranges)
        ranges = cut_ranges(number, offered.ranges, runs_M)
        if offered.dropped:
            ranges = ranges.emptied()
        self._sending[number] = offered.num_bytes
        self._worker.move_ranges(ranges, "send")
        self._outbox.put_message(Sending(number=number, whole=not offered.dropped))
