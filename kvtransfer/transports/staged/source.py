"""The source's end of a stream of a device pool over a plane of hosts.

Chunks are gathered into a ring of page-locked spans; the plane's own stream carries them from
there, as from any host memory, and a span is used again when it is read no more.
"""

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.staging import CHUNK_BYTES, StagingRing
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import Ranges
from kvtransfer.transports.base import SourceStream, Unreachable
from kvtransfer.transports.polling import DevicePoller, Polled
from kvtransfer.transports.staged.gathers import Gathered, Gathers
from protocol.errors import TransferError


class Carrier(SourceStream, Protocol):
    """A plane's source stream over the host memory of a ring."""

    def held_chunks(self) -> Collection[Chunk]:
        """Those offered whose bytes may still be read."""


class StagedSourceStream(Polled, SourceStream):
    def __init__(self, carrier: Carrier, memory: DeviceMemory, ring: StagingRing) -> None:
        """Owns the carrier and the ring."""
        self.transport = carrier.transport
        self.chunk_bytes = min(carrier.chunk_bytes, ring.span_bytes)
        self._carrier = carrier
        self._memory = memory
        self._ring = ring
        self._gathers = Gathers(memory, ring)
        self._held: list[Gathered] = []
        self._poller: DevicePoller = DevicePoller(carrier)

    @property
    def queued_bytes(self) -> int:
        return self._gathers.queued_bytes

    def receive(self) -> None:
        self._poller.ticker.clear()
        self._carrier.receive()
        self.flush()

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        self._gathers.offer(chunk, ranges)

    def finish(self, message: Finish) -> None:
        self._gathers.finish(message)

    def flush(self) -> None:
        self._hand_on()
        self._carrier.flush()
        while self._hand_on():  # what was sent at once made room for the next, and nobody says so
            self._carrier.flush()
        self._poller.ticker.run(self._gathers.is_busy)
        self._poller.watch(self._carrier.fileno(), writable=self._carrier.awaits_room)

    def drop(self, fetch: FetchId) -> None:
        self._gathers.drop(fetch)
        self._carrier.drop(fetch)
        self._return_spans()

    def close(self) -> None:
        self._carrier.close()
        self._poller.close()
        self._held.clear()
        self._memory.staging.retire(self._ring, self._gathers.abandon())

    def _hand_on(self) -> bool:
        """Give the carrier what has been gathered; False when there is none."""
        self._return_spans()
        any_ready = False
        for ready in self._gathers.advance():
            any_ready = True
            match ready:
                case Finish():
                    self._carrier.finish(ready)
                case Gathered():
                    self._carry(ready)
        return any_ready

    def _carry(self, gathered: Gathered) -> None:
        offset, num_bytes = gathered.span.offset, gathered.num_bytes
        where = Ranges(np.array([offset]), np.array([num_bytes]), np.array([0, 1]))
        self._held.append(gathered)
        self._carrier.offer(gathered.chunk, where)

    def _return_spans(self) -> None:
        """Give back those that are read no more."""
        if not self._held:
            return
        read = set(map(id, self._carrier.held_chunks()))
        for gathered in [x for x in self._held if id(x.chunk) not in read]:
            self._held.remove(gathered)
            self._ring.return_span(gathered.span)


def open_source(
    memory: DeviceMemory, *, block_bytes: int, carry: Callable[[StagingRing], Carrier]
) -> StagedSourceStream:
    """A stream of a device pool; `carry` makes its plane's stream over the ring, and `block_bytes`
    are those of the sink's blocks. Raises Unreachable without staging for it, and as `carry`."""
    size_bytes = memory.num_blocks * memory.block_bytes
    try:
        ring = memory.staging.open_ring(span_bytes=max(block_bytes, min(CHUNK_BYTES, size_bytes)))
    except TransferError as error:
        raise Unreachable(str(error)) from error
    try:
        return StagedSourceStream(carry(ring), memory, ring)
    except BaseException:
        memory.staging.retire(ring)
        raise
