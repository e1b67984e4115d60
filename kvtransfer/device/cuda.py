"""An NVIDIA GPU: allocations by the driver API, streams and events by torch, copies by Triton.

Implements `kvtransfer.device.driver`. Whoever makes a device pool imports this; nothing else of
`kvtransfer` does, so host-only processes never load torch. The engine computes in the pool
through `tensor`. An allocation must be exported and opened in different processes; within one, a
handle stands for the allocation itself.
"""

import os
import struct
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvtransfer.device import libcuda
from kvtransfer.device.driver import CannotMap, Mark, Stream, Sums
from kvtransfer.kernels.copy import copy
from kvtransfer.native.copy import Span
from protocol.errors import TransferError
from protocol.process.triton_cache import use_own_triton_cache

_ROUND_BYTES = 2 << 20
"""CUDA packs smaller allocations into one, and a handle names that one."""
_HANDLE = struct.Struct(f"<IQ{libcuda.HANDLE_BYTES}s")  # process, address there, CUDA's handle


@dataclass(frozen=True, slots=True)
class CudaMark:
    event: torch.cuda.Event

    def happened(self) -> bool:
        try:
            return bool(self.event.query())  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise TransferError(f"the device failed: {error}") from error


@dataclass(frozen=True, slots=True)
class CudaStream:
    stream: torch.cuda.Stream

    @property
    def handle(self) -> int:
        return int(self.stream.cuda_stream)

    def record(self) -> CudaMark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return CudaMark(self.stream.record_event(event))


@dataclass(frozen=True, slots=True)
class CudaSums:
    mark: CudaMark
    sums_P: torch.Tensor
    """Pinned, filled when the event has happened."""
    kept: tuple[torch.Tensor, ...]
    """What the launched work still uses."""

    def happened(self) -> bool:
        return self.mark.happened()

    def take_sums(self) -> NDArray[np.uint64]:
        sums_P: NDArray[np.uint64] = self.sums_P.numpy().copy().view(np.uint64)
        return sums_P


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
        self._allocated: set[int] = set()
        self._filling = self.stream()
        use_own_triton_cache()
        self._warm_up()

    def bind(self) -> None:
        """Make the device current for the calling thread."""
        libcuda.make_current(self._context)
        torch.cuda.set_device(self.index)

    def tensor(self, span: Span) -> torch.Tensor:
        """The bytes of a span, shared: `[byte]` uint8 on the device."""
        return torch.as_tensor(_Bytes(span), device=f"cuda:{self.index}")

    def allocate(self, num_bytes: int) -> Span:
        self.bind()
        rounded_bytes = -(-num_bytes // _ROUND_BYTES) * _ROUND_BYTES
        address = libcuda.allocate(rounded_bytes, self._filling.handle)
        self._allocated.add(address)
        return Span(address, num_bytes)

    def free(self, span: Span) -> None:
        self.bind()
        self._allocated.remove(span.address)
        libcuda.free(span.address)

    def export(self, span: Span) -> bytes:
        self.bind()
        return _HANDLE.pack(os.getpid(), span.address, libcuda.export(span.address))

    def open(self, handle: bytes, *, num_bytes: int, device: str) -> Span:
        if len(handle) != _HANDLE.size:
            raise CannotMap(f"a handle of {len(handle)} bytes")
        process, address, packed = _HANDLE.unpack(handle)
        self.bind()
        if process == os.getpid() and address in self._allocated:
            return Span(address, num_bytes)
        try:
            address = libcuda.open_exported(packed)
        except TransferError as error:
            raise CannotMap(f"memory of GPU {device} cannot be mapped: {error}") from error
        span = Span(address, num_bytes)
        if libcuda.allocation_bytes(address) < num_bytes:
            self.close(span)
            raise CannotMap(f"that memory has fewer than {num_bytes} bytes")
        return span

    def close(self, span: Span) -> None:
        if span.address not in self._allocated:
            self.bind()
            libcuda.close_exported(span.address)

    def stream(self) -> CudaStream:
        self.bind()
        stream = torch.cuda.Stream(device=self.index)  # type: ignore[no-untyped-call]
        return CudaStream(stream)

    def mark(self) -> CudaMark:
        return CudaStream(torch.cuda.current_stream(self.index)).record()

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
        """Bring the table to the device, launch, and bring the sums back, all on the stream."""
        assert isinstance(stream, CudaStream)
        self.bind()
        try:
            with torch.cuda.stream(stream.stream):
                rows_5R = torch.from_numpy(table_5R).pin_memory()
                there_5R = rows_5R.to(f"cuda:{self.index}", non_blocking=True)
                summed_P = torch.zeros(num_pieces, dtype=torch.int64, device=there_5R.device)
                if table_5R.shape[1]:
                    longest_words = int(table_5R[2].max())
                    copy(target, source, there_5R, summed_P, longest_words=longest_words)
                sums_P = torch.empty(num_pieces, dtype=torch.int64, pin_memory=True)
                sums_P.copy_(summed_P, non_blocking=True)
            return CudaSums(stream.record(), sums_P, (rows_5R, there_5R, summed_P))
        except RuntimeError as error:
            raise TransferError(f"the device failed: {error}") from error

    def _warm_up(self) -> None:
        """Compile both kernels now: a second that no fetch should wait for."""
        span, stream = self.allocate(64), self.stream()
        rows_5R = np.array([[0], [4], [2], [0], [0]], np.int64)
        self.copy(stream, target=span, source=span, table_5R=rows_5R, num_pieces=1)
        self.sum(stream, source=span, table_5R=rows_5R, num_pieces=1)
        stream.stream.synchronize()
        self.free(span)


class _Bytes:
    """A span as torch takes memory that is not its own."""

    def __init__(self, span: Span) -> None:
        self.__cuda_array_interface__ = {
            "shape": (span.num_bytes,), "typestr": "|u1", "data": (span.address, False),
            "version": 3,
        }  # fmt: skip
