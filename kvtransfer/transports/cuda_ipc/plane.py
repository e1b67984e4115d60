"""GPUs of one host: the sink opens the source's pool by its handle and copies blocks out of it.

The handle comes with the welcome over an abstract unix socket, the generations as a descriptor;
then the source only announces what lies ready. It does so once the engine's event has happened, so
the bytes are there when a copy is launched, and a dead source can leave no stream of ours waiting
for its event. Copies run on a side stream and sum what they write; the sink's thread asks whether
they have happened and never waits.
"""

import os
import socket
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

from kvtransfer.chunk import Landing
from kvtransfer.device.driver import Sums
from kvtransfer.device.table import table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import (
    MAX_WORD_BYTES,
    Chunk,
    FetchId,
    Finish,
    StreamHello,
    StreamWelcome,
    stream_welcome,
    stream_word,
)
from kvtransfer.transports import base, framing
from kvtransfer.transports import unix_socket as local
from kvtransfer.transports.cuda_ipc.peer_pool import PeerMemory, device_offer, offer_of
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.framing import WordInbox
from kvtransfer.transports.polling import Watch
from kvtransfer.transports.shm.streams import AnnouncingStream
from protocol.errors import PeerLost, TransferError, WireError
from protocol.ids import Epoch

NAME: Final = "cuda_ipc"
CHUNK_BYTES: Final = 64 << 20
"""A launch costs the sink's thread a few dozen array operations."""
_MAX_COPIES: Final = 4
"""Launched at a time: enough to keep the device busy between two looks."""
_MAX_WORDS: Final = 64


class CudaIpcListener(local.LocalSocket):
    transport = NAME

    def __init__(self, memory: DeviceMemory, *, epoch: Epoch) -> None:
        self._memory = memory
        super().__init__(NAME, epoch=epoch)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        try:
            setup = device_offer.encode(offer_of(self._memory))
            fd = self._memory.generations_fd()
        except (TransferError, OSError) as error:
            raise PeerLost(f"the pool cannot be handed on: {error}") from error
        try:
            framing.send_word(
                sock, stream_welcome.encode(msgspec.structs.replace(word, setup=setup)), [fd]
            )
        finally:
            os.close(fd)
        return OfferingStream(sock, NAME, helper=None)


class OfferingStream(AnnouncingStream):
    """The source's end: says what lies ready, and does no more."""

    chunk_bytes = CHUNK_BYTES


def dial(address: str, hello: StreamHello, memory: DeviceMemory) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises base.Unreachable."""

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        if len(fds) != 1:
            framing.close_fds(fds)
            raise base.Unreachable(f"{len(fds)} descriptors came with the welcome")
        fd = fds.pop()
        try:
            offer = device_offer.decode(welcome.setup)
        except WireError as error:
            os.close(fd)
            raise base.Unreachable(f"it offers no device pool: {error}") from error
        try:
            source = PeerMemory.open(
                memory.driver, offer, fd,
                num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes,
            )  # fmt: skip
        except TransferError as error:
            raise base.Unreachable(str(error)) from error
        return CopyingStream(sock, source=source, memory=memory)

    return Dial(local.connect(address), transport=NAME, hello=hello, finish=finish)


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """A chunk whose slots the device writes."""

    landing: Landing
    sums: Sums


class CopyingStream:
    """The sink's end. Owns its mapping of the source's pool."""

    transport = NAME

    def __init__(self, sock: socket.socket, *, source: PeerMemory, memory: DeviceMemory) -> None:
        self._sock = sock
        self._source = source
        self._memory = memory
        self._stream = memory.driver.stream()
        self._watch = Watch(sock)
        self._inbox = WordInbox(sock, stream_word, max_bytes=MAX_WORD_BYTES)
        self._words: deque[Chunk | Finish] = deque()
        self._copies: deque[_Copy] = deque()
        self._closed = False

    def fileno(self) -> int:
        return self._watch.fileno()

    def receive(self, taker: base.ChunkTaker) -> bool:
        self._watch.clear()
        self._end_copies(taker)
        if len(self._words) < _MAX_WORDS:
            for word in self._inbox.receive():
                if not isinstance(word, Chunk | Finish):
                    raise WireError(f"{type(word).__name__} is no word of {NAME}")
                self._words.append(word)
        while self._words and self._take(self._words[0], taker):
            self._words.popleft()
        self._watch.expect(device=bool(self._copies))
        return self._inbox.has_more and not self._words

    def stop_writing(self, fetch: FetchId) -> bool:
        theirs = [copy for copy in self._copies if copy.landing.fetch == fetch]
        if not all(_is_over(copy) for copy in theirs):
            return False
        self._copies = deque(copy for copy in self._copies if copy.landing.fetch != fetch)
        return True

    def close(self) -> bool:
        if self._closed:
            return True
        if not all(_is_over(copy) for copy in self._copies):
            return False
        self._closed = True
        self._copies.clear()
        self._watch.close()
        self._sock.close()
        self._source.close()
        return True

    def _take(self, word: Chunk | Finish, taker: base.ChunkTaker) -> bool:
        """False when it must wait for copies under way."""
        if isinstance(word, Finish):
            if any(copy.landing.fetch == word.fetch for copy in self._copies):
                return False
            taker.finished(word)
            return True
        if len(self._copies) >= _MAX_COPIES:
            return False
        landing = taker.begin_chunk(word)
        if landing is not None:
            self._launch(landing, taker)
        return True

    def _launch(self, landing: Landing, taker: base.ChunkTaker) -> None:
        why = self._source.why_not(landing)
        if not why:
            try:
                self._source.span.check(landing.source)
                self._memory.span.check(landing.target)
                table_5R = table(landing.source, landing.target)
            except ValueError as error:
                why = str(error)
        if why:
            taker.end_chunk(landing, None, broken=why)
            return
        sums = self._memory.driver.copy(
            self._stream, target=self._memory.span, source=self._source.span, table_5R=table_5R,
            num_pieces=len(landing.pieces_P),
        )  # fmt: skip
        self._copies.append(_Copy(landing, sums))

    def _end_copies(self, taker: base.ChunkTaker) -> None:
        while self._copies and self._copies[0].sums.happened():
            copy = self._copies.popleft()
            why = self._source.why_not(copy.landing)
            taker.end_chunk(copy.landing, None if why else copy.sums.take(), broken=why)


def _is_over(copy: _Copy) -> bool:
    """The device writes for it no more; a device that is lost writes nothing."""
    try:
        return copy.sums.happened()
    except TransferError:
        return True
