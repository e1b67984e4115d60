"""The source's end of a UCX stream: announces chunks, and sends those that the sink has posted
straight from the pool.

A message that UCX has been given cannot be recalled: it is read to its end, and its checksum tells
if its block was changed meanwhile.
"""

import socket
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    MAX_WORD_BYTES,
    Chunk,
    FetchId,
    Finish,
    Posted,
    Sending,
    StreamWelcome,
    Unwanted,
    stream_welcome,
    ucx_to_sink,
    ucx_to_source,
)
from kvtransfer.plan import Ranges
from kvtransfer.transports.framing import WordInbox, WordOutbox, send_word
from kvtransfer.transports.polling import eyes_for
from kvtransfer.transports.ucx.cut import cut, runs_of
from kvtransfer.transports.ucx.session import Broke, Moved, Proved, Ready
from kvtransfer.transports.ucx.sink import NAME, QUIET_S
from kvtransfer.transports.ucx.thread import UcxWorker
from protocol.errors import PeerLost, WireError

CHUNK_BYTES: Final = 1 << 20
"""Four of them are under way at a time: what a source queues."""
_LEAST_BYTES: Final = 64 << 10
"""What a smaller chunk counts for, so that few are under way."""


@dataclass(slots=True, eq=False)
class _Offered:
    """A chunk that the sink has not answered yet."""

    fetch: FetchId
    ranges: Ranges
    num_bytes: int
    dropped: bool = False


class UcxSourceStream:
    chunk_bytes = CHUNK_BYTES

    def __init__(
        self, sock: socket.socket, memory: BlockMemory, *, welcome: StreamWelcome, peer: bytes
    ) -> None:
        """Welcomes the sink, whose worker is `peer`, once our own worker is up."""
        self.transport = NAME
        self._sock = sock
        self._welcome: StreamWelcome | None = welcome
        self._worker = UcxWorker(memory.blocks)
        self._eyes = eyes_for(sock, self._worker)
        self._worker.meet(peer, probe="send")
        self._inbox = WordInbox(sock, ucx_to_source, max_bytes=MAX_WORD_BYTES)
        self._outbox = WordOutbox(sock, ucx_to_sink)
        self._num_offered = 0
        self._offered: dict[int, _Offered] = {}
        self._sending: dict[int, int] = {}
        """Bytes of each chunk that UCX has been given."""
        self._eyes.watch()

    @property
    def queued_bytes(self) -> int:
        offered = sum(each.num_bytes for each in self._offered.values())
        return self._outbox.num_bytes + offered + sum(self._sending.values())

    @property
    def awaits_room(self) -> bool:
        """Never: our own descriptor tells when the socket has room."""
        return False

    def fileno(self) -> int:
        return self._eyes.fileno()

    def receive(self) -> None:
        for event in self._worker.events():
            match event:
                case Ready(address):
                    self._greet(address)
                case Moved(number):
                    del self._sending[number]
                case Broke(why):
                    raise PeerLost(why)
                case Proved():
                    pass
                case _:
                    assert_never(event)
        self._hear()
        while self._inbox.has_more:  # at most an answer for each chunk that is offered
            self._hear()
        self.flush()

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        raise WireError("ucx has one socket")

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        num_bytes = max(int(ranges.sizes_R.sum()), _LEAST_BYTES)
        offered = _Offered(FetchId(chunk.fetch), ranges, num_bytes)
        self._offered[self._num_offered] = offered
        self._num_offered += 1
        self._outbox.put(chunk)

    def finish(self, word: Finish) -> None:
        self._outbox.put(word)

    def flush(self) -> None:
        self._outbox.flush()
        self._eyes.watch(writable=bool(self._outbox.num_bytes))

    def drop(self, fetch: FetchId) -> None:
        """What UCX has been given is read to its end; its checksums tell if it was changed."""
        for offered in self._offered.values():
            offered.dropped = offered.dropped or offered.fetch == fetch

    def close(self) -> None:
        self._eyes.close()
        self._sock.close()
        self._worker.stop(wait_s=QUIET_S)

    def _greet(self, address: bytes) -> None:
        assert self._welcome is not None
        welcome, self._welcome = self._welcome, None
        word = msgspec.structs.replace(welcome, setup=address)
        send_word(self._sock, stream_welcome.encode(word))

    def _hear(self) -> None:
        for word in self._inbox.receive():
            match word:
                case Posted():
                    self._send(word)
                case Unwanted(number=number):
                    self._take(number)
                case _:
                    assert_never(word)

    def _take(self, number: int) -> _Offered:
        offered = self._offered.pop(number, None)
        if offered is None:
            raise WireError(f"chunk {number} was answered, and not offered")
        return offered

    def _send(self, word: Posted) -> None:
        number, offered = word.number, self._take(word.number)
        runs_M = runs_of(word.runs, offered.ranges)
        messages = cut(number, offered.ranges, runs_M)
        if offered.dropped:
            messages = messages.emptied()
        self._sending[number] = offered.num_bytes
        self._worker.move(messages, "send")
        self._outbox.put(Sending(number=number, whole=not offered.dropped))
