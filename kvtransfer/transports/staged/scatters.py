"""Chunks on their way into a device pool: landed in page-locked memory, uploaded and scattered.

Stands between a plane's sink stream, which lands chunks in host memory, and the fetches, whose
slots are on the device. The sums are the device's, of what it wrote.
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.device.driver import Sums
from kvtransfer.device.table import packed, table
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.staging import StagingRing, StagingSpan
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges
from kvtransfer.transports.base import ChunkTaker
from kvtransfer.transports.polling import is_over
from protocol.errors import WireError


@dataclass(slots=True, eq=False)
class _Staged:
    """A chunk of ours: where it goes, and the span that it lands in before."""

    landing: Landing
    span: StagingSpan
    sums: Sums | None = None
    """Of its scatter, once that is launched: from then on the device writes its slots."""


class Scatters(ChunkTaker):
    """Those of one stream. Before any of it is called as a taker, `taker` must be set."""

    def __init__(self, memory: DeviceMemory, ring: StagingRing) -> None:
        self.taker: ChunkTaker | None = None
        """Whose fetches the chunks are of."""
        self._memory = memory
        self._ring = ring
        self._stream = memory.driver.stream()
        self._landing: dict[Landing, _Staged] = {}
        """Whose bytes are on their way into host memory, by the landing there."""
        self._launched: deque[_Staged] = deque()
        self._finishes: deque[Finish] = deque()

    @property
    def span(self) -> Span:
        """The host memory that chunks land in."""
        return self._ring.span

    @property
    def is_busy(self) -> bool:
        """Something is under way on the device."""
        return bool(self._launched)

    def has_room(self) -> bool:
        """A chunk may be begun."""
        return self._ring.has_room

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        landing = self._owner.begin_chunk(chunk)
        if landing is None:
            return None
        span = self._ring.take_span()
        assert span is not None, "a chunk was begun without room"
        if landing.num_bytes > span.num_bytes:
            self._ring.return_span(span)
            why = f"a chunk of {landing.num_bytes} bytes, where {span.num_bytes} were granted"
            self._owner.end_chunk(landing, None, broken=why)
            raise WireError(why)
        goal = packed(landing.target)
        where = Ranges(goal.offsets_R + span.offset, goal.sizes_R, goal.starts_P)
        landed = replace(landing, target=where)
        self._landing[landed] = _Staged(landing, span)
        return landed

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        staged = self._landing.pop(landing, None)
        if staged is None:
            return
        if sums_P is not None:
            broken = self._launch(staged)
        if broken or sums_P is None:
            self._ring.return_span(staged.span)
            self._owner.end_chunk(staged.landing, None, broken=broken)

    def finished(self, message: Finish) -> None:
        self._finishes.append(message)
        self._tell_finishes()

    def advance(self) -> None:
        """End the chunks that the device has written. Raises TransferError when it is lost."""
        while self._launched and (sums := self._launched[0].sums) and sums.happened():
            staged = self._launched.popleft()
            self._ring.return_span(staged.span)
            self._owner.end_chunk(staged.landing, sums.take_sums())
        self._tell_finishes()

    def stop_writing(self, fetch: FetchId) -> bool:
        """As of a sink's stream, once its plane has stopped landing chunks of this fetch."""
        for landed in [x for x in self._landing if x.fetch == fetch]:
            self._ring.return_span(self._landing.pop(landed).span)
        theirs = [x for x in self._launched if x.landing.fetch == fetch]
        if not all(x.sums is None or is_over(x.sums) for x in theirs):
            return False
        for staged in theirs:
            self._launched.remove(staged)
            self._ring.return_span(staged.span)
        return True

    def have_stopped(self) -> bool:
        """The device writes for none of them any more."""
        return all(x.sums is None or is_over(x.sums) for x in self._launched)

    def close(self) -> None:
        """Nothing is launched any more."""
        self._stream.close()

    @property
    def _owner(self) -> ChunkTaker:
        assert self.taker is not None
        return self.taker

    def _launch(self, staged: _Staged) -> str:
        """Begin to write the slots; why that cannot be."""
        landing, span, memory = staged.landing, staged.span, self._memory
        try:
            memory.span.check(landing.target)
            table_5R = table(packed(landing.target), landing.target)
        except ValueError as error:
            return str(error)
        self._launched.append(staged)
        memory.driver.upload(
            self._stream, source=Span(span.host.address, landing.num_bytes),
            target=Span(span.device.address, landing.num_bytes),
        )  # fmt: skip
        staged.sums = memory.driver.copy(
            self._stream, target=memory.span, source=span.device, table_5R=table_5R,
            num_pieces=len(landing.pieces_P),
        )  # fmt: skip
        return ""

    def _tell_finishes(self) -> None:
        """Those of fetches of which nothing is under way any more."""
        if not self._finishes:
            return
        busy = {x.landing.fetch for x in (*self._landing.values(), *self._launched)}
        due = [x for x in self._finishes if x.fetch not in busy]
        self._finishes = deque(x for x in self._finishes if x.fetch in busy)
        for message in due:
            self._owner.finished(message)
