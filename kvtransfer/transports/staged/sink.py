"""The sink's end of a stream into a device pool over a plane of hosts.

The plane's own stream lands chunks in a ring of page-locked spans, as in any host memory; from
there they are uploaded and scattered. While all spans are in use nothing more is read.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.staging import CHUNK_BYTES, NUM_SPANS, StagingRing
from kvtransfer.messages import FetchId
from kvtransfer.transports.base import ChunkTaker, DialOptions, SinkStream, Unreachable
from kvtransfer.transports.polling import DevicePoller, Polled
from kvtransfer.transports.staged.scatters import Scatters
from protocol.errors import TransferError

STAGED_LANES: Final = NUM_SPANS // 2
"""Lanes that land chunks at a time: so, with all spans in use, some are in the device's hands, and
come back whatever the source does."""


class StagedSinkStream(Polled, SinkStream):
    def __init__(
        self, carrier: SinkStream, memory: DeviceMemory, ring: StagingRing, scatters: Scatters
    ) -> None:
        """Owns the carrier, which lands chunks as `scatters` says, and the ring."""
        self.transport = carrier.transport
        self._carrier = carrier
        self._memory = memory
        self._ring = ring
        self._scatters = scatters
        self._poller: DevicePoller = DevicePoller(carrier)
        self._listens = True
        self._closed = False

    def receive(self, taker: ChunkTaker) -> bool:
        self._poller.ticker.clear()
        self._scatters.taker = taker
        self._scatters.advance()
        has_more = self._scatters.has_room() and self._carrier.receive(self._scatters)
        was_full = not self._scatters.has_room()  # the carrier may have more, and cannot begin it
        self._scatters.advance()
        self._listen(self._scatters.has_room())
        self._poller.ticker.run(self._scatters.is_busy)
        return self._listens and (has_more or was_full)

    def stop_writing(self, fetch: FetchId) -> bool:
        return self._carrier.stop_writing(fetch) and self._scatters.stop_writing(fetch)

    def close(self) -> bool:
        if self._closed:
            return True
        if not self._scatters.have_stopped():
            return False
        self._closed = True
        self._poller.close()
        self._carrier.close()
        self._scatters.close()
        self._memory.staging.retire(self._ring)
        return True

    def _listen(self, on: bool) -> None:
        """Wake for what comes, or only for the device."""
        if on == self._listens:
            return
        self._listens = on
        if on:
            self._poller.watch(self._carrier.fileno())
        else:
            self._poller.forget(self._carrier.fileno())


def bounded(memory: DeviceMemory, options: DialOptions) -> DialOptions:
    """The same dial, for a sink that takes only chunks that fit its spans."""
    hello = msgspec.structs.replace(options.hello, chunk_bytes=_span_bytes(memory))
    return replace(options, hello=hello)


def open_sink(memory: DeviceMemory, carry: Callable[[Scatters], SinkStream]) -> StagedSinkStream:
    """A stream into a device pool; `carry` makes its plane's stream, which lands chunks in the
    scatters' host memory. Raises Unreachable without staging for it, and as `carry`."""
    try:
        ring = memory.staging.open_ring(span_bytes=_span_bytes(memory))
    except TransferError as error:
        raise Unreachable(str(error)) from error
    try:
        scatters = Scatters(memory, ring)
        return StagedSinkStream(carry(scatters), memory, ring, scatters)
    except BaseException:
        memory.staging.retire(ring)
        raise


def _span_bytes(memory: DeviceMemory) -> int:
    """A chunk, or a block if that is larger; no more than the pool."""
    return max(memory.block_bytes, min(CHUNK_BYTES, memory.num_blocks * memory.block_bytes))
