"""An NVIDIA GPU: memory, streams and events by the driver API, copies by Triton.

Implements `kvtransfer.device.driver`. Whoever makes a device pool imports this; nothing else of
`kvtransfer` does, so host-only processes never load torch. The engine computes in the pool
through `tensor`. To the driver that exported it, a handle stands for the allocation itself.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvtransfer.device import libcuda
from kvtransfer.device.allocations import Allocations
from kvtransfer.device.driver import Exported, Mark, Stream, Sums
from kvtransfer.device.launch_buffers import LaunchBuffer, LaunchBuffers
from kvtransfer.kernels.copy import copy
from kvtransfer.native.copy import Span
from protocol.errors import TransferError
from protocol.process.triton_cache import use_own_triton_cache

_EVEN = 2
"""Tables begin at 16 bytes, or a second variant of the kernel would be compiled in a transfer."""


class CudaMark:
    def __init__(self, stream: int, bind: Callable[[], None]) -> None:
        """The point that a stream has reached; `bind` makes its device current."""
        bind()
        self._bind = bind
        self.event = libcuda.record_event(stream)

    def happened(self) -> bool:
        self._bind()
        return libcuda.has_happened(self.event)

    def __del__(self) -> None:
        if hasattr(self, "event"):
            with suppress(TransferError):  # the device is lost, and the event with it
                libcuda.destroy_event(self.event)


class CudaStream:
    """One of our own: torch's are 32, handed out round robin, and the engine's is among them."""

    def __init__(self, index: int, bind: Callable[[], None]) -> None:
        bind()
        self._bind = bind
        self._handle = libcuda.create_stream()
        stream = torch.cuda.ExternalStream(self._handle, device=index)  # type: ignore[no-untyped-call]
        self.torch_stream = stream

    @property
    def handle(self) -> int:
        assert self._handle, "the stream was closed"
        return self._handle

    def record(self) -> CudaMark:
        return CudaMark(self.handle, self._bind)

    def wait_for(self, mark: Mark) -> None:
        assert isinstance(mark, CudaMark)
        self._bind()
        libcuda.wait_for_event(self.handle, mark.event)

    def close(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            self._bind()
            with suppress(TransferError):  # the device is lost, and the stream with it
                libcuda.destroy_stream(handle)


class CudaSums:
    def __init__(self, mark: CudaMark, buffer: LaunchBuffer, num_pieces: int) -> None:
        self._mark = mark
        self._buffer = buffer
        self._num_pieces = num_pieces
        self._sums_P: NDArray[np.uint64] | None = None
        buffer.keep_for(self, mark)

    def happened(self) -> bool:
        if self._sums_P is None and self._mark.happened():
            self._sums_P = self._buffer.host_W[: self._num_pieces].copy().view(np.uint64)
            self._buffer.release()
        return self._sums_P is not None

    def take_sums(self) -> NDArray[np.uint64]:
        assert self._sums_P is not None
        return self._sums_P


class CudaDriver:
    name = "cuda"

    def __init__(self, index: int = 0) -> None:
        """Device `index` of those visible; compiles the kernels. Raises TransferError."""
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            properties = torch.cuda.get_device_properties(index)
        except (RuntimeError, AssertionError) as error:
            raise TransferError(f"no CUDA device {index}: {error}") from error
        self.device = str(properties.uuid)
        self.index = index
        self._context = libcuda.primary_context(index)
        self._allocations = Allocations(index, device=self.device)
        self._filling = self.stream()
        use_own_triton_cache()
        self._buffers = LaunchBuffers(partial(self.allocate, zeros=False), self.tensor)
        self._warm_up()

    def bind(self) -> None:
        """Make the device current for the calling thread."""
        libcuda.make_current(self._context)
        torch.cuda.set_device(self.index)

    def tensor(self, span: Span) -> torch.Tensor:
        """The bytes of a span, shared: `[byte]` uint8 on the device."""
        return torch.as_tensor(_Bytes(span), device=f"cuda:{self.index}")

    def allocate(self, num_bytes: int, *, zeros: bool = True) -> Span:
        self.bind()
        span = self._allocations.allocate(num_bytes)
        if zeros:
            # On the default stream they would come after the engine's work, and over what our
            # other streams put there.
            libcuda.clear(span.address, num_bytes, self._filling.handle)
            libcuda.wait_for_stream(self._filling.handle)
        return span

    def free(self, span: Span) -> None:
        self.bind()
        self._allocations.free(span)

    def export(self, span: Span) -> Exported:
        self.bind()
        return self._allocations.export(span)

    def open(self, handle: bytes, fd: int, *, num_bytes: int, device: str) -> Span:
        self.bind()
        return self._allocations.open(handle, fd, num_bytes=num_bytes, device=device)

    def close(self, span: Span) -> None:
        self.bind()
        self._allocations.close(span)

    def stream(self) -> CudaStream:
        return CudaStream(self.index, self.bind)

    def mark(self) -> CudaMark:
        engine: Any = torch.cuda.current_stream(self.index)
        return CudaMark(engine.cuda_stream, self.bind)

    def copy(
        self, stream: Stream, *, target: Span, source: Span, table_5R: NDArray[np.int64],
        num_pieces: int,
    ) -> Sums:  # fmt: skip
        return self._launch(stream, target.address, source.address, table_5R, num_pieces)

    def sum(
        self, stream: Stream, *, source: Span, table_5R: NDArray[np.int64], num_pieces: int
    ) -> Sums:
        return self._launch(stream, None, source.address, table_5R, num_pieces)

    def register(self, span: Span) -> None:
        self.bind()
        libcuda.register(span.address, span.num_bytes)

    def unregister(self, span: Span) -> None:
        self.bind()
        libcuda.unregister(span.address)

    def download(self, stream: Stream, *, source: Span, target: Span) -> Mark:
        assert source.num_bytes == target.num_bytes
        self.bind()
        libcuda.download(target.address, source.address, source.num_bytes, stream.handle)
        return stream.record()

    def upload(self, stream: Stream, *, source: Span, target: Span) -> Mark:
        assert source.num_bytes == target.num_bytes
        self.bind()
        libcuda.upload(target.address, source.address, source.num_bytes, stream.handle)
        return stream.record()

    def read(self, span: Span, offset: int, num_bytes: int) -> bytes:
        self.bind()
        torch.cuda.synchronize(self.index)
        return self.tensor(span)[offset : offset + num_bytes].cpu().numpy().tobytes()

    def write(self, span: Span, offset: int, content: bytes) -> None:
        self.bind()
        pinned = torch.frombuffer(bytearray(content), dtype=torch.uint8).pin_memory()
        self.tensor(span)[offset : offset + len(content)].copy_(pinned, non_blocking=True)

    def _launch(
        self, stream: Stream, target: int | None, source: int, table_5R: NDArray[np.int64],
        num_pieces: int,
    ) -> CudaSums:  # fmt: skip
        """Bring the table to the device, and zeros to add up in; launch; bring the sums back."""
        assert isinstance(stream, CudaStream)
        self.bind()
        start = -(-num_pieces // _EVEN) * _EVEN
        num_words = start + table_5R.size
        buffer = self._buffers.take_buffer(num_words)
        try:
            buffer.host_W[:num_pieces] = 0
            buffer.host_W[start:num_words] = table_5R.reshape(-1)
            device, host = buffer.span.address, buffer.host
            libcuda.upload(device, host, 8 * num_words, stream.handle)
            if table_5R.size:
                there_5R = buffer.device_W[start:num_words].view(table_5R.shape)
                with torch.cuda.stream(stream.torch_stream):
                    copy(
                        target, source, there_5R, buffer.device_W[:num_pieces],
                        longest_words=int(table_5R[2].max()),
                    )  # fmt: skip
            libcuda.download(host, device, 8 * num_pieces, stream.handle)
            return CudaSums(stream.record(), buffer, num_pieces)
        except RuntimeError as error:
            raise TransferError(f"the device failed: {error}") from error

    def _warm_up(self) -> None:
        """Compile both kernels now: a second that no fetch should wait for."""
        span, stream = self.allocate(64), self.stream()
        rows_5R = np.array([[0], [4], [2], [0], [0]], np.int64)
        self.copy(stream, target=span, source=span, table_5R=rows_5R, num_pieces=1)
        self.sum(stream, source=span, table_5R=rows_5R, num_pieces=1)
        libcuda.wait_for_stream(stream.handle)
        stream.close()
        self.free(span)


class _Bytes:
    """A span as torch takes memory that is not its own."""

    def __init__(self, span: Span) -> None:
        self.__cuda_array_interface__ = {
            "shape": (span.num_bytes,), "typestr": "|u1", "data": (span.address, False),
            "version": 3,
        }  # fmt: skip
