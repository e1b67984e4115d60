"""The source's end of an NCCL stream: gathers offered chunks into staging and sends them.

Made by `kvtransfer.transports.nccl.plane`, used from the source's thread. A gather that is launched
reads the pool for its millisecond even when its fetch is dropped meanwhile; its bytes are thrown
away by the sink, whose fetch is over.
"""

import socket
import time
from collections import deque
from dataclasses import dataclass

from kvtransfer.device.driver import Span, Stream
from kvtransfer.device.table import packed, table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import Ranges
from kvtransfer.transports.dial import end_of
from kvtransfer.transports.framing import WordOutbox
from kvtransfer.transports.nccl.messages import (
    CHUNK_BYTES,
    NAME,
    NUM_STAGED,
    Join,
    Rank,
    nccl_word,
    rank_of,
    staging_bytes,
)
from kvtransfer.transports.nccl.pair import Pair, Staging
from kvtransfer.transports.polling import Watch
from protocol.errors import PeerLost, TransferError, WireError


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    chunk: Chunk
    ranges: Ranges
    num_bytes: int


class NcclSourceStream:
    transport = NAME
    chunk_bytes = CHUNK_BYTES
    awaits_room = False
    """Our own descriptor wakes us for room in the socket too."""

    def __init__(self, sock: socket.socket, memory: DeviceMemory, theirs: Rank) -> None:
        self.queued_bytes = 0
        self._sock = sock
        self._memory = memory
        self._num_staged_bytes = staging_bytes(rank_of(memory), theirs)
        self._watch = Watch(sock)
        self._outbox = WordOutbox(sock, nccl_word)
        self._offers: deque[_Offer | Finish] = deque()
        self._pair: Pair | None = None

    def fileno(self) -> int:
        return self._watch.fileno()

    def receive(self) -> None:
        self._watch.clear()
        end_of(self._sock)
        self.flush()

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        raise WireError(f"{NAME} has one socket")

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        num_bytes = int(ranges.sizes_R.sum())
        assert num_bytes <= self._num_staged_bytes
        self._offers.append(_Offer(chunk, ranges, num_bytes))
        self.queued_bytes += num_bytes

    def finish(self, word: Finish) -> None:
        self._offers.append(word)

    def flush(self) -> None:
        self._advance()
        while self._offers and self._send(self._offers[0]):
            self._offers.popleft()
        self._advance()
        self._outbox.flush()
        busy = self._pair is not None and self._pair.is_busy
        self._watch.expect(device=busy or bool(self._offers), room=bool(self._outbox.num_bytes))

    def drop(self, fetch: FetchId) -> None:
        kept = [x for x in self._offers if isinstance(x, Finish) or x.chunk.fetch != fetch]
        self._offers = deque(kept)
        self.queued_bytes = sum(x.num_bytes for x in kept if isinstance(x, _Offer))

    def close(self) -> None:
        self._offers.clear()
        self._watch.close()
        self._sock.close()
        if self._pair is not None:
            self._pair.abort()

    def _advance(self) -> None:
        if self._pair is not None:
            for transfer in self._pair.advance():
                self._pair.staging.give_back(transfer.span)

    def _send(self, offer: _Offer | Finish) -> bool:
        """Post one; False when there is no staging for it now."""
        if isinstance(offer, Finish):
            self._outbox.put(offer)
            return True
        pair = self._pair = self._pair or self._meet()
        span = pair.staging.take()
        if span is None:
            return False
        self._gather(offer.ranges, span, pair.stream)
        pair.post(span, offer.num_bytes)
        self._outbox.put(offer.chunk)
        self.queued_bytes -= offer.num_bytes
        return True

    def _gather(self, ranges: Ranges, span: Span, stream: Stream) -> None:
        """Launch the copy into staging. Raises PeerLost: this stream cannot carry it."""
        memory = self._memory
        try:
            memory.driver.copy(
                stream, target=span, source=memory.span, table_5R=table(ranges, packed(ranges)),
                num_pieces=len(ranges.starts_P) - 1,
            )  # fmt: skip
        except (ValueError, TransferError) as error:
            raise PeerLost(f"a chunk cannot be gathered: {error}") from error

    def _meet(self) -> Pair:
        """Make the communicator, and tell the sink how. Raises PeerLost."""
        collectives, driver = self._memory.collectives, self._memory.driver
        assert collectives is not None
        try:
            unique_id = collectives.unique_id()
            staging = Staging(driver, num=NUM_STAGED, num_bytes=self._num_staged_bytes)
            pair = Pair(
                driver=driver, collectives=collectives, unique_id=unique_id, rank=0,
                staging=staging, clock=time.monotonic,
            )  # fmt: skip
        except TransferError as error:
            raise PeerLost(f"no communicator can be made: {error}") from error
        self._outbox.put(Join(unique_id=unique_id))
        return pair
