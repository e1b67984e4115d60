"""A device without a GPU: host memory that other processes map, and work that a test can hold.

Passes the contract suite of the CUDA driver and stands for it in tests and on machines without
one. Launched work is done by whoever next asks whether something has happened, in the order of
its stream, by the kernels' torch twins; a stream that is held does nothing until it is let go, as
one that waits behind a long forward. Says nothing about speed.
"""

import ctypes
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from support.copy_twins import copy_twin, sums_twin

from kvtransfer.device.driver import CannotMap, Exported, Mark, Stream, Sums
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

_HANDLE = struct.Struct("<8sQ")
_MAGIC = b"fake mem"

Step = Callable[[], bool]
"""Launched work: does what it can without waiting; True when it is done."""


class FakeStream:
    """Steps in order, done when somebody looks."""

    def __init__(
        self, handle: int, on_close: Callable[[int], object] = lambda handle: None
    ) -> None:
        self.handle = handle
        self._on_close = on_close
        self._steps: deque[Step] = deque()
        self._lock = threading.RLock()
        self._holds = 0

    def launch(self, step: Step) -> None:
        with self._lock:
            self._steps.append(step)

    def record(self) -> "FakeEvent":
        event = FakeEvent(self)
        self.launch(event.reach)
        return event

    def wait_for(self, mark: Mark) -> None:
        self.launch(mark.happened)

    def close(self) -> None:
        self._on_close(self.handle)

    @property
    def num_waiting(self) -> int:
        """Steps launched and not done."""
        return len(self._steps)

    def advance(self) -> None:
        """Do what can be done now."""
        with self._lock:
            while self._steps and not self._holds and self._steps[0]():
                self._steps.popleft()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, nothing of this stream happens."""
        with self._lock:
            self._holds += 1
        try:
            yield
        finally:
            with self._lock:
                self._holds -= 1


class FakeEvent:
    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self._reached = False

    def reach(self) -> bool:
        self._reached = True
        return True

    def happened(self) -> bool:
        if not self._reached:
            self._stream.advance()
        return self._reached


class FakeSums:
    def __init__(self, event: Mark, sums_P: torch.Tensor) -> None:
        self._event = event
        self._sums_P = sums_P

    def happened(self) -> bool:
        return self._event.happened()

    def take_sums(self) -> NDArray[np.uint64]:
        sums_P: NDArray[np.uint64] = self._sums_P.numpy().view(np.uint64)
        return sums_P


@dataclass(slots=True)
class _Mapping:
    memory: mmap.mmap
    fd: int
    words_W: torch.Tensor


@dataclass
class FakeDriver:
    """A device of host memory. Spans are valid in this process only, as real ones are."""

    device: str = "fake-0"
    why_no_peer: str = ""
    """Set: memory of other processes cannot be mapped here, for this reason."""
    room_bytes: int = 1 << 40
    name: str = "fake"
    engine: FakeStream = field(default_factory=lambda: FakeStream(0))
    """The stream that `mark` and `write` use."""
    streams: dict[int, FakeStream] = field(default_factory=dict)
    """Those that are open, by the order in which they were made, from 1."""
    num_made: int = 0
    """Streams, the closed ones too."""
    num_copies: int = 0
    """Launched."""
    num_sums: int = 0
    """Launched alone."""
    registered: dict[int, Span] = field(default_factory=dict)
    """Host memory that is page-locked now, by its address."""
    _mappings: dict[int, _Mapping] = field(default_factory=dict)

    def allocate(self, num_bytes: int, *, zeros: bool = True) -> Span:
        if num_bytes > self.room_bytes:
            raise TransferError(f"the device has no room for {num_bytes} bytes")
        fd = os.memfd_create("baton-fake-device", os.MFD_CLOEXEC)
        os.ftruncate(fd, num_bytes)
        return self._map(fd, num_bytes)

    def free(self, span: Span) -> None:
        self.close(span)

    def export(self, span: Span) -> Exported:
        handle = _HANDLE.pack(_MAGIC, span.num_bytes)
        return Exported(handle=handle, fd=os.dup(self._mappings[span.address].fd))

    def open(self, handle: bytes, fd: int, *, num_bytes: int, device: str) -> Span:
        if self.why_no_peer:
            raise CannotMap(self.why_no_peer)
        if len(handle) != _HANDLE.size or _HANDLE.unpack(handle) != (_MAGIC, num_bytes):
            raise CannotMap(f"that is no handle of {num_bytes} bytes")
        if os.fstat(fd).st_size != num_bytes:
            raise CannotMap(f"that memory has not {num_bytes} bytes")
        return self._map(os.dup(fd), num_bytes)

    def close(self, span: Span) -> None:
        mapping = self._mappings.pop(span.address)
        os.close(mapping.fd)  # the pages go with the last view of them

    def stream(self) -> FakeStream:
        self.num_made += 1
        stream = FakeStream(self.num_made, lambda handle: self.streams.pop(handle, None))
        self.streams[stream.handle] = stream
        return stream

    def mark(self) -> FakeEvent:
        return self.engine.record()

    def copy(
        self, stream: Stream, *, target: Span, source: Span, table_5R: NDArray[np.int64],
        num_pieces: int,
    ) -> Sums:  # fmt: skip
        self.num_copies += 1
        sums_P = torch.zeros(num_pieces, dtype=torch.int64)
        goal_W, origin_W = self.words(target), self.words(source)

        def step() -> bool:
            copy_twin(goal_W, origin_W, torch.from_numpy(table_5R), sums_P)
            return True

        return self._launched(stream, step, sums_P)

    def sum(
        self, stream: Stream, *, source: Span, table_5R: NDArray[np.int64], num_pieces: int
    ) -> Sums:
        self.num_sums += 1
        sums_P = torch.zeros(num_pieces, dtype=torch.int64)
        origin_W = self.words(source)

        def step() -> bool:
            sums_twin(origin_W, torch.from_numpy(table_5R), sums_P)
            return True

        return self._launched(stream, step, sums_P)

    def register(self, span: Span) -> None:
        if span.num_bytes > self.room_bytes:
            raise TransferError(f"{span.num_bytes} bytes cannot be page-locked")
        assert span.address not in self.registered, "registered twice"
        self.registered[span.address] = span

    def unregister(self, span: Span) -> None:
        assert self.registered.pop(span.address) == span

    def download(self, stream: Stream, *, source: Span, target: Span) -> Mark:
        self._check_registered(target)
        device = self.bytes_of(source)[: source.num_bytes]
        host = _host_bytes(target)
        return self._moved(stream, host, device)

    def upload(self, stream: Stream, *, source: Span, target: Span) -> Mark:
        self._check_registered(source)
        device = self.bytes_of(target)[: target.num_bytes]
        return self._moved(stream, device, _host_bytes(source))

    def read(self, span: Span, offset: int, num_bytes: int) -> bytes:
        return self.bytes_of(span)[offset : offset + num_bytes].tobytes()

    def write(self, span: Span, offset: int, content: bytes) -> None:
        into = self.bytes_of(span)

        def step() -> bool:
            into[offset : offset + len(content)] = content
            return True

        self.engine.launch(step)
        self.engine.advance()

    @property
    def num_spans(self) -> int:
        """Allocated or opened and not given back."""
        return len(self._mappings)

    def tensor(self, span: Span) -> torch.Tensor:
        """The bytes of a span, shared, as of `CudaDriver`: what an engine computes in."""
        return self.words(span).view(torch.uint8)

    def words(self, span: Span) -> torch.Tensor:
        """All of a span, as int64 words."""
        return self._mappings[span.address].words_W

    def bytes_of(self, span: Span) -> memoryview:
        """A span that was allocated or opened, or its start, in this process."""
        return memoryview(self._mappings[span.address].memory)[: span.num_bytes]

    def _launched(self, stream: Stream, step: Step, sums_P: torch.Tensor) -> FakeSums:
        assert isinstance(stream, FakeStream)
        stream.launch(step)
        return FakeSums(stream.record(), sums_P)

    def _check_registered(self, host: Span) -> None:
        """A copy that runs beside all else needs memory that stays where it is."""
        ends = [(x.address, x.address + x.num_bytes) for x in list(self.registered.values())]
        within = (a <= host.address and host.address + host.num_bytes <= b for a, b in ends)
        assert any(within), "host memory that is not registered"

    def _moved(self, stream: Stream, target: memoryview, source: memoryview) -> Mark:
        assert isinstance(stream, FakeStream) and len(target) == len(source)

        def step() -> bool:
            target[:] = source
            return True

        stream.launch(step)
        return stream.record()

    def _map(self, fd: int, num_bytes: int) -> Span:
        memory = mmap.mmap(fd, num_bytes)
        words: NDArray[Any] = np.frombuffer(memory, np.int64)
        self._mappings[words.ctypes.data] = _Mapping(memory, fd, torch.from_numpy(words))
        return Span(words.ctypes.data, num_bytes)


def _host_bytes(span: Span) -> memoryview:
    whole: Any = (ctypes.c_ubyte * span.num_bytes).from_address(span.address)
    return memoryview(whole).cast("B")
