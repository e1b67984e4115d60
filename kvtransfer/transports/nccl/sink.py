"""The sink's end of an NCCL stream: receives announced chunks into staging and scatters them.

A chunk is received whether it is still wanted or not, because the source's send waits for it; its
slots are written only after, by a scatter that takes a fraction of a millisecond.
"""

import socket
from collections import deque
from dataclasses import dataclass
from typing import Final, assert_never

from kvtransfer.chunk import Landing, unpack_pieces
from kvtransfer.device.driver import Sums
from kvtransfer.device.table import GRAIN_BYTES, packed, table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native.copy import Span
from kvtransfer.transports.base import ChunkTaker, SinkStream
from kvtransfer.transports.framing import MessageInbox
from kvtransfer.transports.nccl.messages import (
    NAME,
    Join,
    NcclSetup,
    NcclToSink,
    nccl_to_sink,
    setup_of,
    staging_bytes,
)
from kvtransfer.transports.nccl.pair import Pair, Transfer, join_pair
from kvtransfer.transports.polling import DevicePoller, Polled, is_over
from protocol.errors import WireError

_MAX_WAITING: Final = 64
"""Messages heard and not taken up; then no more are read."""


@dataclass(slots=True, eq=False)
class _StagedChunk:
    """An announced chunk: received into `span` by `transfer`, then scattered into its slots."""

    chunk: Chunk
    span: Span
    transfer: Transfer
    landing: Landing | None = None
    sums: Sums | None = None


class NcclSinkStream(Polled, SinkStream):
    transport = NAME

    def __init__(self, sock: socket.socket, memory: DeviceMemory, setup: NcclSetup) -> None:
        """`setup` is the other end's."""
        self._sock = sock
        self._memory = memory
        self._max_chunk_bytes = staging_bytes(setup_of(memory), setup)
        self._poller: DevicePoller = DevicePoller(sock)
        self._scatters = memory.driver.stream()
        self._inbox = MessageInbox(sock, nccl_to_sink)
        self._waiting: deque[NcclToSink] = deque()
        self._staged: deque[_StagedChunk] = deque()
        self._pair: Pair | None = None
        self._closed = False

    def receive(self, taker: ChunkTaker) -> bool:
        self._poller.ticker.clear()
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.extend(self._inbox.receive())
        self._go_on(taker)
        while self._waiting and self._take_up(self._waiting[0], taker):
            self._waiting.popleft()
        self._go_on(taker)
        pair = self._pair
        busy = bool(self._staged) or (pair is not None and pair.is_busy)
        self._poller.ticker.run(busy, soon=pair is not None and pair.is_settling)
        if self._waiting:
            return not self._staged  # a message waits for nothing but the next turn
        return self._inbox.has_more

    def stop_writing(self, fetch: FetchId) -> bool:
        theirs = [x for x in self._staged if x.landing is not None and x.landing.fetch == fetch]
        return all(_has_stopped(staged) for staged in theirs)

    def close(self) -> bool:
        if self._closed:
            return True
        if not all(_has_stopped(staged) for staged in self._staged):
            return False
        self._closed = True
        self._poller.close()
        self._sock.close()
        self._scatters.close()
        if self._pair is not None:
            self._pair.abort()
        return True

    def _take_up(self, message: NcclToSink, taker: ChunkTaker) -> bool:
        """False when it must wait for what is under way."""
        match message:
            case Join(unique_id=unique_id):
                self._meet(unique_id)
                return True
            case Chunk():
                return self._expect(message)
            case Finish():
                if any(staged.chunk.fetch == message.fetch for staged in self._staged):
                    return False
                taker.finished(message)
                return True
            case _:
                assert_never(message)

    def _meet(self, unique_id: bytes) -> None:
        """Raises WireError for a second communicator, PeerLost when none can be made."""
        if self._pair is not None:
            raise WireError("the source makes a second communicator on one stream")
        self._pair = join_pair(self._memory, unique_id, rank=1, chunk_bytes=self._max_chunk_bytes)

    def _expect(self, chunk: Chunk) -> bool:
        """Post the receive of an announced chunk; False when there is no staging for it now."""
        if self._pair is None:
            raise WireError("a chunk was announced before a communicator")
        num_bytes = int(unpack_pieces(chunk)["num_bytes"].sum(dtype=object))
        if not 0 < num_bytes <= self._max_chunk_bytes or num_bytes % GRAIN_BYTES:
            raise WireError(f"a chunk of {num_bytes} bytes")
        span = self._pair.take_span()
        if span is None:
            return False
        self._staged.append(_StagedChunk(chunk, span, self._pair.post_transfer(span, num_bytes)))
        return True

    def _go_on(self, taker: ChunkTaker) -> None:
        """Scatter what has been received, and end what has been scattered."""
        if self._pair is None:
            return
        done = self._pair.advance()
        for staged in [x for x in self._staged if x.transfer in done]:
            self._scatter(staged, taker)
        for staged in list(self._staged):
            if staged.sums is not None and staged.sums.happened():
                assert staged.landing is not None
                self._forget(staged)
                taker.end_chunk(staged.landing, staged.sums.take_sums())

    def _scatter(self, staged: _StagedChunk, taker: ChunkTaker) -> None:
        """Launch the copy into the slots, if the chunk is still wanted."""
        landing = taker.begin_chunk(staged.chunk)
        if landing is None:
            self._forget(staged)
            return
        try:
            self._memory.span.check(landing.target)
            if landing.num_bytes != staged.transfer.span.num_bytes:
                raise ValueError(
                    f"{staged.transfer.span.num_bytes} bytes came for a chunk of others"
                )
            table_5R = table(packed(landing.target), landing.target)
        except ValueError as error:
            self._forget(staged)
            taker.end_chunk(landing, None, broken=str(error))
            return
        staged.landing = landing
        staged.sums = self._memory.driver.copy(
            self._scatters, target=self._memory.span, source=staged.span, table_5R=table_5R,
            num_pieces=len(landing.pieces_P),
        )  # fmt: skip

    def _forget(self, staged: _StagedChunk) -> None:
        assert self._pair is not None
        self._staged.remove(staged)
        self._pair.return_span(staged.span)


def _has_stopped(staged: _StagedChunk) -> bool:
    """Nobody writes its slots now."""
    return staged.sums is None or is_over(staged.sums)
