"""Where the words of a launch lie: pinned on the host and on the device, used again and again.

A launch's table goes up and its sums come down through the same words, so it allocates nothing.
There are as many buffers as were ever in use at a time; none is given back.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from kvtransfer.device import libcuda
from kvtransfer.device.driver import Mark
from kvtransfer.native.copy import Span

# Shapes: W words of 8 bytes.

LEAST_BYTES: Final = 64 << 10
"""Room for 1,600 ranges."""
_AT_ONCE: Final = 32
"""Buffers of the least size are made so many at a time: 2 MiB, the least a device gives."""


class LaunchBuffer:
    """Used by one launch at a time: from `LaunchBuffers.take_buffer` until `release`."""

    def __init__(
        self, host_W: NDArray[np.int64], device_W: torch.Tensor, *, host: int, span: Span
    ) -> None:
        """`host` is the address of `host_W`, which is pinned, `span` where `device_W` lies."""
        self.host_W = host_W
        self.device_W = device_W
        self.host = host
        self.span = span
        self.is_taken = False
        self._launched: tuple[Mark, weakref.ref[object]] | None = None

    def keep_for(self, user: object, mark: Mark) -> None:
        """A launch uses the words until `mark`, and `user` reads them afterwards: once nobody is
        left that could, they are free."""
        self._launched = mark, weakref.ref(user)

    def release(self) -> None:
        self._launched = None
        self.is_taken = False  # last: from here on another thread may have it

    def is_free(self) -> bool:
        launched = self._launched  # its user may release it meanwhile, on another thread
        if self.is_taken and launched is not None:
            mark, user = launched
            if user() is None and mark.happened():
                self.release()
        return not self.is_taken


class LaunchBuffers:
    """Those of one device. Methods may be called from any thread."""

    def __init__(
        self, allocate: Callable[[int], Span], tensor: Callable[[Span], torch.Tensor]
    ) -> None:
        """`allocate` gives device memory, `tensor` its bytes."""
        self._allocate = allocate
        self._tensor = tensor
        self._lock = threading.Lock()
        self._free: dict[int, list[LaunchBuffer]] = {}
        """By their size in bytes."""
        self._used: list[LaunchBuffer] = []

    def take_buffer(self, num_words: int) -> LaunchBuffer:
        """One of at least so many words, nobody else's. Raises TransferError without room."""
        num_bytes = max(LEAST_BYTES, 1 << (8 * num_words - 1).bit_length())
        with self._lock:
            self._gather()
            free = self._free.setdefault(num_bytes, [])
            if not free:
                free.extend(self._make(num_bytes))
            buffer = free.pop()
            buffer.is_taken = True
            self._used.append(buffer)
            return buffer

    def _gather(self) -> None:
        used, self._used = self._used, []
        for buffer in used:
            if buffer.is_free():
                self._free[buffer.host_W.nbytes].append(buffer)
            else:
                self._used.append(buffer)

    def _make(self, num_bytes: int) -> list[LaunchBuffer]:
        count = _AT_ONCE if num_bytes == LEAST_BYTES else 1
        span, pinned = self._allocate(count * num_bytes), libcuda.allocate_pinned(count * num_bytes)
        words = (ctypes.c_int64 * (count * num_bytes // 8)).from_address(pinned)
        host_W: NDArray[np.int64] = np.ctypeslib.as_array(words)
        device_W = self._tensor(span).view(torch.int64)
        return [
            LaunchBuffer(
                host_W[at // 8 :][: num_bytes // 8], device_W[at // 8 :][: num_bytes // 8],
                host=pinned + at, span=Span(span.address + at, num_bytes),
            )
            for at in range(0, count * num_bytes, num_bytes)
        ]  # fmt: skip
