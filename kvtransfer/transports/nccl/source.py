"""The source's end of an NCCL stream: gathers offered chunks into staging and sends them.

A gather that is launched reads the pool for its millisecond even when its fetch is dropped
meanwhile; its bytes are thrown away by the sink, whose fetch is over.
"""

import socket
from collections import deque
from dataclasses import dataclass

from kvtransfer.device.table import packed, table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges
from kvtransfer.transports.base import SourceStream
from kvtransfer.transports.dial import check_for_end
from kvtransfer.transports.framing import MessageOutbox
from kvtransfer.transports.nccl.messages import (
    CHUNK_BYTES,
    NAME,
    Join,
    NcclSetup,
    nccl_to_sink,
    setup_of,
    staging_bytes,
)
from kvtransfer.transports.nccl.pair import Pair, join_pair
from kvtransfer.transports.polling import DevicePoller, Polled
from protocol.errors import PeerLost, TransferError


@dataclass(frozen=True, slots=True, eq=False)
class _OfferedChunk:
    chunk: Chunk
    ranges: Ranges
    num_bytes: int


class NcclSourceStream(Polled, SourceStream):
    transport = NAME
    chunk_bytes = CHUNK_BYTES
    queued_bytes = 0

    def __init__(self, sock: socket.socket, memory: DeviceMemory, setup: NcclSetup) -> None:
        """`setup` is the other end's."""
        self._sock = sock
        self._memory = memory
        self._max_chunk_bytes = staging_bytes(setup_of(memory), setup)
        self._poller: DevicePoller = DevicePoller(sock)
        self._outbox = MessageOutbox(sock, nccl_to_sink)
        self._offers: deque[_OfferedChunk | Finish] = deque()
        self._gathers = memory.driver.stream()
        self._pair: Pair | None = None

    def receive(self) -> None:
        self._poller.ticker.clear()
        check_for_end(self._sock)
        self.flush()

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        num_bytes = int(ranges.sizes_R.sum())
        assert num_bytes <= self._max_chunk_bytes
        self._offers.append(_OfferedChunk(chunk, ranges, num_bytes))
        self.queued_bytes += num_bytes

    def finish(self, message: Finish) -> None:
        self._offers.append(message)

    def flush(self) -> None:
        self._advance()
        while self._offers and self._send(self._offers[0]):
            self._offers.popleft()
        self._advance()
        self._outbox.flush()
        pair = self._pair
        busy = bool(self._offers) or (pair is not None and pair.is_busy)
        self._poller.ticker.run(busy, soon=pair is not None and pair.is_settling)
        self._poller.watch(self._sock.fileno(), writable=bool(self._outbox.num_bytes))

    def drop(self, fetch: FetchId) -> None:
        kept = [x for x in self._offers if isinstance(x, Finish) or x.chunk.fetch != fetch]
        self._offers = deque(kept)
        self.queued_bytes = sum(x.num_bytes for x in kept if isinstance(x, _OfferedChunk))

    def close(self) -> None:
        self._offers.clear()
        self._poller.close()
        self._sock.close()
        if self._pair is None:
            self._gathers.close()
        else:
            self._pair.abort(after=self._gathers.close)

    def _advance(self) -> None:
        if self._pair is not None:
            for transfer in self._pair.advance():
                self._pair.return_span(transfer.span)

    def _send(self, offer: _OfferedChunk | Finish) -> bool:
        """Post one; False when there is no staging for it now."""
        if isinstance(offer, Finish):
            self._outbox.put_message(offer)
            return True
        pair = self._pair = self._pair or self._meet()
        span = pair.take_span()
        if span is None:
            return False
        self._gather(offer.ranges, span)
        pair.post_transfer(span, offer.num_bytes, after=self._gathers.record())
        self._outbox.put_message(offer.chunk)
        self.queued_bytes -= offer.num_bytes
        return True

    def _gather(self, ranges: Ranges, span: Span) -> None:
        """Launch the copy into staging. Raises PeerLost: this stream cannot carry it."""
        memory = self._memory
        try:
            memory.driver.copy(
                self._gathers, target=span, source=memory.span,
                table_5R=table(ranges, packed(ranges)), num_pieces=len(ranges.starts_P) - 1,
            )  # fmt: skip
        except (ValueError, TransferError) as error:
            raise PeerLost(f"a chunk cannot be gathered: {error}") from error

    def _meet(self) -> Pair:
        """Make the communicator, and tell the sink how. Raises PeerLost."""
        collectives = self._memory.collectives
        assert collectives is not None
        try:
            unique_id = collectives.unique_id()
        except TransferError as error:
            raise PeerLost(f"no communicator can be made: {error}") from error
        pair = join_pair(self._memory, unique_id, rank=0, chunk_bytes=self._max_chunk_bytes)
        self._outbox.put_message(Join(unique_id=unique_id))
        return pair
