"""Chunks on their way out of a device pool: gathered, downloaded, and handed on in order.

A gather that is launched reads the pool for its millisecond even when its fetch is dropped
meanwhile; what it brought is then handed to nobody.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from kvtransfer.device.driver import Mark
from kvtransfer.device.table import packed, table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.staging import StagingRing, StagingSpan
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges
from protocol.errors import PeerLost, TransferError

PATIENCE_S: Final = 5.0
"""A chunk leaves a device in a millisecond; one that takes this long hangs."""


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    chunk: Chunk
    ranges: Ranges
    num_bytes: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Gathered:
    """A chunk whose bytes lie at the start of a span of host memory."""

    chunk: Chunk
    span: StagingSpan
    num_bytes: int


@dataclass(slots=True, eq=False)
class _Download:
    gathered: Gathered
    mark: Mark
    begun_s: float
    is_dropped: bool = False


class Gathers:
    """Those of one stream."""

    def __init__(
        self, memory: DeviceMemory, ring: StagingRing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.queued_bytes = 0
        """Offered and not launched."""
        self._memory = memory
        self._ring = ring
        self._clock = clock
        self._stream = memory.driver.stream()
        self._offers: deque[_Offer | Finish] = deque()
        self._launched: deque[_Download | Finish] = deque()

    @property
    def is_busy(self) -> bool:
        """Something is under way on the device."""
        return bool(self._launched)

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        num_bytes = int(ranges.sizes_R.sum())
        self._offers.append(_Offer(chunk, ranges, num_bytes))
        self.queued_bytes += num_bytes

    def finish(self, message: Finish) -> None:
        """Hand it on after everything offered before."""
        self._offers.append(message)

    def drop(self, fetch: FetchId) -> None:
        """Hand on nothing more of this fetch."""
        kept = [x for x in self._offers if isinstance(x, Finish) or x.chunk.fetch != fetch]
        self._offers = deque(kept)
        self.queued_bytes = sum(x.num_bytes for x in kept if isinstance(x, _Offer))
        for download in self._launched:
            if isinstance(download, _Download) and download.gathered.chunk.fetch == fetch:
                download.is_dropped = True

    def advance(self) -> Iterator[Gathered | Finish]:
        """Go on as far as it goes without waiting; what is ready, in order. Raises PeerLost when
        the device fails or hangs: another stream may do."""
        try:
            self._launch_offers()
            while self._launched:
                first = self._launched[0]
                if isinstance(first, _Download) and not self._happened(first):
                    return
                self._launched.popleft()
                if isinstance(first, Finish):
                    yield first
                elif first.is_dropped:
                    self._ring.return_span(first.gathered.span)
                else:
                    yield first.gathered
                self._launch_offers()
        except PeerLost:
            raise
        except (TransferError, ValueError) as error:
            raise PeerLost(f"a chunk cannot be gathered: {error}") from error

    def abandon(self) -> list[Mark]:
        """Hand on nothing more; what may still write into the ring."""
        launched: list[Mark] = [x.mark for x in self._launched if isinstance(x, _Download)]
        self._offers.clear()
        self._launched.clear()
        self._stream.close()
        self.queued_bytes = 0
        return launched

    def _launch_offers(self) -> None:
        while self._offers:
            offer = self._offers[0]
            if isinstance(offer, _Offer):
                span = self._ring.take_span()
                if span is None:
                    return
                self._launched.append(self._launch(offer, span))
                self.queued_bytes -= offer.num_bytes
            else:
                self._launched.append(offer)
            self._offers.popleft()

    def _launch(self, offer: _Offer, span: StagingSpan) -> _Download:
        memory, num_bytes = self._memory, offer.num_bytes
        if num_bytes > span.num_bytes:  # the peer asks for other blocks than it said it has
            raise ValueError(f"{num_bytes} bytes, where spans of {span.num_bytes} were agreed on")
        memory.driver.copy(
            self._stream, target=span.device, source=memory.span,
            table_5R=table(offer.ranges, packed(offer.ranges)),
            num_pieces=len(offer.ranges.starts_P) - 1,
        )  # fmt: skip
        mark = memory.driver.download(
            self._stream, source=Span(span.device.address, num_bytes),
            target=Span(span.host.address, num_bytes),
        )  # fmt: skip
        gathered = Gathered(chunk=offer.chunk, span=span, num_bytes=num_bytes)
        return _Download(gathered, mark, self._clock())

    def _happened(self, download: _Download) -> bool:
        if download.mark.happened():
            return True
        if self._clock() - download.begun_s > PATIENCE_S:
            raise PeerLost(f"the device has not given a chunk out within {PATIENCE_S} s")
        return False
