"""Page-locked host memory in which chunks of a device pool wait between the device and a socket.

Each link has a ring of a few spans, each with as much device memory beside it; all rings of a pool
together are bounded, and a ring goes only when the device has done what was launched on it, on a
thread of its own: unlocking and freeing may wait for all that the device does. Does not know
chunks.
"""

import logging
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvtransfer.device.driver import Driver, Mark
from kvtransfer.memory.sealed import address_of, create_sealed, reader_fd
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 8 << 20
"""A span, unless a block is larger: a millisecond of copying by a host's core."""
NUM_SPANS: Final = 4
"""Of a ring: one gathered, one downloaded, two in the other end's hands; or back."""
MOST_BYTES: Final = 1 << 30
"""Of all rings of a pool, page-locked, and as much on the device: 32 links of usual blocks."""
_PAGE_BYTES: Final = 4096
_PATIENCE_S: Final = 2.0
_LOOK_S: Final = 0.001
_LONGEST_LOOK_S: Final = 0.1
"""At a device that does not answer."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StagingSpan:
    """Room for one chunk, on the host and on the device."""

    offset: int
    """In the ring's host memory."""
    host: Span
    device: Span

    @property
    def num_bytes(self) -> int:
        return self.host.num_bytes


class StagingRing:
    """Of one stream, used by its thread. Its host memory can be mapped by another process."""

    def __init__(self, driver: Driver, *, span_bytes: int, num_spans: int) -> None:
        """Raises TransferError without room for it."""
        self.span_bytes = span_bytes
        self.num_bytes = span_bytes * num_spans
        self._driver = driver
        self._devices: list[Span] = []
        self._fd, self._mapping = _create(self.num_bytes)
        self.span: Span = Span(address_of(self._mapping), self.num_bytes)
        """All of it, as this process addresses it."""
        self._is_registered = False
        try:
            driver.register(self.span)
            self._is_registered = True
            for _ in range(num_spans):
                self._devices.append(driver.allocate(span_bytes, zeros=False))
        except TransferError:
            self.free()
            raise
        self._idle = deque(self._span(number) for number in range(num_spans))
        self._num_spans = num_spans

    @property
    def has_room(self) -> bool:
        return bool(self._idle)

    @property
    def num_taken(self) -> int:
        return self._num_spans - len(self._idle)

    def take_span(self) -> StagingSpan | None:
        """One that nobody uses; None while all are in use."""
        return self._idle.popleft() if self._idle else None

    def return_span(self, span: StagingSpan) -> None:
        self._idle.append(span)

    def reader_fd(self) -> int:
        """A new descriptor of the host memory that can be mapped for reading only; the caller
        closes it."""
        return reader_fd(self._fd)

    def free(self) -> None:
        """No launched work may use it any more. Another process may still read what it mapped."""
        if self._is_registered:
            self._driver.unregister(self.span)
        while self._devices:
            self._driver.free(self._devices.pop())
        self._mapping.close()
        os.close(self._fd)

    def _span(self, number: int) -> StagingSpan:
        offset = number * self.span_bytes
        host = Span(self.span.address + offset, self.span_bytes)
        return StagingSpan(offset=offset, host=host, device=self._devices[number])


class Staging:
    """All rings of one device pool. May be used from any thread."""

    def __init__(self, driver: Driver, *, most_bytes: int = MOST_BYTES) -> None:
        self._driver = driver
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        """Held to look at what follows; told when a ring is gone."""
        self._used_bytes = 0
        self._num_retired = 0

    @property
    def used_bytes(self) -> int:
        """Page-locked now, those included that wait for the device."""
        return self._used_bytes

    def open_ring(self, *, span_bytes: int) -> StagingRing:
        """A ring whose spans hold so many bytes. Raises TransferError beyond the bound, or without
        room for it."""
        span_bytes = -(-span_bytes // _PAGE_BYTES) * _PAGE_BYTES
        num_bytes = span_bytes * NUM_SPANS
        with self._changed:
            if self._used_bytes + num_bytes > self._most_bytes:
                raise TransferError(
                    f"staging: {num_bytes} bytes for a link, {self._used_bytes} of"
                    f" {self._most_bytes} are taken"
                )
            ring = StagingRing(self._driver, span_bytes=span_bytes, num_spans=NUM_SPANS)
            self._used_bytes += num_bytes
            return ring

    def retire(self, ring: StagingRing, launched: Sequence[Mark] = ()) -> None:
        """Free a ring once `launched` has happened. Waits for nothing."""
        with self._changed:
            self._num_retired += 1
        args = (ring, tuple(launched))
        threading.Thread(target=self._free, args=args, name="staging-free", daemon=True).start()

    def close(self) -> None:
        """Until what was retired is free; waits a moment for the device."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._num_retired, timeout=_PATIENCE_S):
                log.warning("staging is left to a device that does not answer: restart this worker")

    def _free(self, ring: StagingRing, launched: Sequence[Mark]) -> None:
        look_s = _LOOK_S
        while not all(map(_is_over, launched)):
            time.sleep(look_s)
            look_s = min(2 * look_s, _LONGEST_LOOK_S)
        why = ""
        try:
            ring.free()
        except TransferError as error:
            why = str(error)
            log.warning("staging stays page-locked: restart this worker", extra={"why": why})
        with self._changed:
            self._num_retired -= 1
            self._used_bytes -= 0 if why else ring.num_bytes
            self._changed.notify_all()


def _is_over(launched: Mark) -> bool:
    """The device does nothing more for it; one that is lost does nothing at all."""
    try:
        return launched.happened()
    except TransferError:
        return True


def _create(num_bytes: int) -> tuple[int, mmap.mmap]:
    try:
        return create_sealed("baton-kv-staging", num_bytes, shared_writing=False)
    except OSError as error:
        raise TransferError(f"no memory to stage blocks in: {error}") from error
