"""The sink's end of an NCCL stream: receives announced chunks into staging and scatters them.

Made by `kvtransfer.transports.nccl.plane`, used from the sink's thread. A chunk is received whether
it is still wanted or not, because the source's send waits for it; its slots are written only after,
by a scatter that takes a fraction of a millisecond.
"""

import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, assert_never

import numpy as np

from kvtransfer.chunk import MAX_CHUNK_PIECES, PIECE, Landing
from kvtransfer.device.driver import Span, Sums
from kvtransfer.device.table import GRAIN_BYTES, packed, table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import MAX_WORD_BYTES, Chunk, FetchId, Finish
from kvtransfer.transports import base
from kvtransfer.transports.framing import WordInbox
from kvtransfer.transports.nccl.messages import (
    NAME,
    NUM_STAGED,
    Join,
    NcclWord,
    Rank,
    nccl_word,
    rank_of,
    staging_bytes,
)
from kvtransfer.transports.nccl.pair import Pair, Staging, Transfer
from kvtransfer.transports.polling import Watch
from protocol.errors import PeerLost, TransferError, WireError

_MAX_WORDS: Final = 64


@dataclass(slots=True, eq=False)
class _Arrival:
    """An announced chunk: received into `span` by `transfer`, then scattered into its slots."""

    chunk: Chunk
    span: Span
    transfer: Transfer
    landing: Landing | None = None
    sums: Sums | None = None


class NcclSinkStream:
    transport = NAME

    def __init__(self, sock: socket.socket, memory: DeviceMemory, theirs: Rank) -> None:
        self._sock = sock
        self._memory = memory
        self._num_staged_bytes = staging_bytes(rank_of(memory), theirs)
        self._watch = Watch(sock)
        self._scatters = memory.driver.stream()
        self._inbox = WordInbox(sock, nccl_word, max_bytes=MAX_WORD_BYTES)
        self._words: deque[NcclWord] = deque()
        self._arrivals: deque[_Arrival] = deque()
        self._pair: Pair | None = None
        self._closed = False

    def fileno(self) -> int:
        return self._watch.fileno()

    def receive(self, taker: base.ChunkTaker) -> bool:
        self._watch.clear()
        if len(self._words) < _MAX_WORDS:
            self._words.extend(self._inbox.receive())
        self._go_on(taker)
        while self._words and self._take(self._words[0], taker):
            self._words.popleft()
        self._go_on(taker)
        busy = self._pair is not None and self._pair.is_busy
        self._watch.expect(device=busy or bool(self._arrivals))
        if self._words:
            return not self._arrivals  # a word waits for nothing but the next turn
        return self._inbox.has_more

    def stop_writing(self, fetch: FetchId) -> bool:
        theirs = [x for x in self._arrivals if x.landing is not None and x.landing.fetch == fetch]
        return all(_is_over(arrival) for arrival in theirs)

    def close(self) -> bool:
        if self._closed:
            return True
        if not all(_is_over(arrival) for arrival in self._arrivals):
            return False
        self._closed = True
        self._watch.close()
        self._sock.close()
        if self._pair is not None:
            self._pair.abort()
        return True

    def _take(self, word: NcclWord, taker: base.ChunkTaker) -> bool:
        """False when it must wait for what is under way."""
        match word:
            case Join(unique_id=unique_id):
                self._meet(unique_id)
                return True
            case Chunk():
                return self._expect(word)
            case Finish():
                if any(arrival.chunk.fetch == word.fetch for arrival in self._arrivals):
                    return False
                taker.finished(word)
                return True
            case _:
                assert_never(word)

    def _meet(self, unique_id: bytes) -> None:
        """Raises WireError for a second communicator, PeerLost when none can be made."""
        collectives, driver = self._memory.collectives, self._memory.driver
        assert collectives is not None
        if self._pair is not None:
            raise WireError("the source makes a second communicator on one stream")
        try:
            staging = Staging(driver, num=NUM_STAGED, num_bytes=self._num_staged_bytes)
            self._pair = Pair(
                driver=driver, collectives=collectives, unique_id=unique_id, rank=1,
                staging=staging, clock=time.monotonic,
            )  # fmt: skip
        except TransferError as error:
            raise PeerLost(f"no communicator can be made: {error}") from error

    def _expect(self, chunk: Chunk) -> bool:
        """Post the receive of an announced chunk; False when there is no staging for it now."""
        if self._pair is None:
            raise WireError("a chunk was announced before a communicator")
        num_bytes = _num_bytes(chunk)
        if not 0 < num_bytes <= self._num_staged_bytes or num_bytes % GRAIN_BYTES:
            raise WireError(f"a chunk of {num_bytes} bytes")
        span = self._pair.staging.take()
        if span is None:
            return False
        self._arrivals.append(_Arrival(chunk, span, self._pair.post(span, num_bytes)))
        return True

    def _go_on(self, taker: base.ChunkTaker) -> None:
        """Scatter what has been received, and end what has been scattered."""
        if self._pair is None:
            return
        done = self._pair.advance()
        for arrival in [x for x in self._arrivals if x.transfer in done]:
            self._scatter(arrival, taker)
        for arrival in list(self._arrivals):
            if arrival.sums is not None and arrival.sums.happened():
                assert arrival.landing is not None
                self._forget(arrival)
                taker.end_chunk(arrival.landing, arrival.sums.take_sums())

    def _scatter(self, arrival: _Arrival, taker: base.ChunkTaker) -> None:
        """Launch the copy into the slots, if the chunk is still wanted."""
        landing = taker.begin_chunk(arrival.chunk)
        if landing is None:
            self._forget(arrival)
            return
        try:
            self._memory.span.check(landing.target)
            if landing.num_bytes != arrival.transfer.num_bytes:
                raise ValueError(f"{arrival.transfer.num_bytes} bytes came for a chunk of others")
            table_5R = table(packed(landing.target), landing.target)
        except ValueError as error:
            self._forget(arrival)
            taker.end_chunk(landing, None, broken=str(error))
            return
        arrival.landing = landing
        arrival.sums = self._memory.driver.copy(
            self._scatters, target=self._memory.span, source=arrival.span, table_5R=table_5R,
            num_pieces=len(landing.pieces_P),
        )  # fmt: skip

    def _forget(self, arrival: _Arrival) -> None:
        assert self._pair is not None
        self._arrivals.remove(arrival)
        self._pair.staging.give_back(arrival.span)


def _num_bytes(chunk: Chunk) -> int:
    """What the pieces of a chunk say they have. Raises WireError."""
    num_pieces, rest = divmod(len(chunk.pieces), PIECE.itemsize)
    if rest or not 0 < num_pieces <= MAX_CHUNK_PIECES:
        raise WireError(f"a chunk of {len(chunk.pieces)} bytes of pieces")
    return int(np.frombuffer(chunk.pieces, PIECE)["num_bytes"].sum(dtype=object))


def _is_over(arrival: _Arrival) -> bool:
    """The device writes for it no more; a device that is lost writes nothing."""
    try:
        return arrival.sums is None or arrival.sums.happened()
    except TransferError:
        return True
