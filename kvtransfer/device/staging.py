"""Contiguous device memory for chunks under way, shared by all links of a pool.

A span is made when it is first needed and used again: a link that comes or goes allocates nothing.
What is made at most is bounded over all links, so that many cost no more memory than a few.
"""

import threading
from typing import Final

from kvtransfer.device.driver import Driver
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

STAGING_BYTES: Final = 512 << 20
"""Of both ways together: 16 chunks of 32 MiB, as many as four links have under way. One chunk of
each link that receives comes on top where it must."""


class DeviceStaging:
    """Of one device pool. Methods may be called from any thread."""

    def __init__(self, driver: Driver, *, most_bytes: int = STAGING_BYTES) -> None:
        self._driver = driver
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._idle: dict[int, list[Span]] = {}
        """By their size."""
        self._num_bytes = 0
        self._closed = False

    @property
    def num_bytes(self) -> int:
        """Made and not freed, in use or not."""
        return self._num_bytes

    def take_span(self, num_bytes: int, *, beyond: bool = False) -> Span | None:
        """A span of that size which nobody else uses; None while there is no more of it. Raises
        TransferError when the device has no room for a single one. `beyond` the bound if need be:
        for who would keep others waiting that hold spans themselves."""
        with self._lock:
            idle = self._idle.setdefault(num_bytes, [])
            if idle:
                return idle.pop()
            is_full = self._num_bytes and self._num_bytes + num_bytes > self._most_bytes
            if is_full and not beyond:
                return None
            return self._make_span(num_bytes)

    def return_span(self, span: Span) -> None:
        """No launched work uses it any more. May wait for the device once it is closed."""
        with self._lock:
            if not self._closed:
                self._idle[span.num_bytes].append(span)
                return
        self._driver.free(span)

    def close(self) -> None:
        """Free what is idle now, and the rest as it comes back. May wait for the device."""
        with self._lock:
            self._closed = True
            idle = [span for spans in self._idle.values() for span in spans]
            self._idle.clear()
        for span in idle:
            self._driver.free(span)

    def _make_span(self, num_bytes: int) -> Span | None:
        try:
            span = self._driver.allocate(num_bytes, zeros=False)
        except TransferError:
            if not self._num_bytes:
                raise
            return None  # what is in use comes back
        self._num_bytes += num_bytes
        return span
