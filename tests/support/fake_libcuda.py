"""The CUDA driver library at the boundary of ctypes: what is called, in order, and memory to map.

Device memory is a memfd, so a descriptor of it can be handed on and keeps it alive, as CUDA's does.
Every process maps at the same addresses. Says nothing of kernels.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvtransfer.device import libcuda, virtual_memory

OUT_OF_MEMORY, INVALID, NOT_READY, NO_PEER = 2, 1, 600, 217
GRAIN_BYTES = 2 << 20
FIRST_ADDRESS = 0x7F00_0000_0000


def put(reference: Any, value: int, kind: type[Any] = ctypes.c_uint64) -> int:
    """Write where `byref` points; the value."""
    ctypes.cast(reference, ctypes.POINTER(kind))[0] = value
    return value


class _Function:
    """A function whose `argtypes` can be set, as of a CDLL."""

    def __init__(self, call: Callable[..., int]) -> None:
        self.call = call
        self.argtypes: list[Any] = []

    def __call__(self, *arguments: Any) -> int:
        return self.call(*arguments)


@dataclass(eq=False)
class FakeLibcuda:
    """One process's library."""

    calls: list[str] = field(default_factory=list)
    """Names without "cu", of what makes, maps, hands on or gives back."""
    uuids: list[bytes] = field(default_factory=lambda: [bytes([1]) * 16])
    """Of the devices this process sees."""
    has_peer_access: bool = True
    gives_descriptors: bool = True
    room_bytes: int = 1 << 40
    events_happen: bool = True
    streams: set[int] = field(default_factory=set)
    events: set[int] = field(default_factory=set)
    priorities: list[int] = field(default_factory=list)
    memory: dict[int, int] = field(default_factory=dict)
    """Descriptors of physical memory, by handle."""
    mapped: dict[int, mmap.mmap] = field(default_factory=dict)
    """The bytes at each address, whoever still has a handle of them."""
    reserved: dict[int, int] = field(default_factory=dict)
    """Bytes, by address."""
    pinned: list[object] = field(default_factory=list)
    _next: int = 1
    _next_address: int = FIRST_ADDRESS

    def __getattr__(self, name: str) -> _Function:
        if not name.startswith("cu"):
            raise AttributeError(name)
        kept = getattr(type(self), f"_{name.removesuffix('_v2')}", None)
        function = _Function(lambda *arguments: 0 if kept is None else kept(self, *arguments))
        setattr(self, name, function)
        return function

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _cuDevicePrimaryCtxRetain(self, context: Any, index: int) -> int:
        put(context, 0xC0 + index)
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:
        put(count, len(self.uuids), ctypes.c_int)
        return 0

    def _cuDeviceGetUuid(self, packed: Any, index: int) -> int:
        ctypes.memmove(ctypes.cast(packed, ctypes.c_void_p), self.uuids[index], 16)
        return 0

    def _cuDeviceCanAccessPeer(self, can: Any, index: int, peer: int) -> int:
        put(can, int(self.has_peer_access), ctypes.c_int)
        return 0

    def _cuDeviceGetAttribute(self, value: Any, number: int, index: int) -> int:
        put(value, int(self.gives_descriptors), ctypes.c_int)
        return 0

    def _cuCtxGetStreamPriorityRange(self, least: Any, greatest: Any) -> int:
        put(least, 0, ctypes.c_int)
        put(greatest, -5, ctypes.c_int)
        return 0

    def _cuStreamCreateWithPriority(self, stream: Any, flags: int, priority: int) -> int:
        self.streams.add(put(stream, self._number()))
        self.priorities.append(priority)
        return 0

    def _cuStreamDestroy(self, stream: int) -> int:
        self.streams.remove(stream)
        return 0

    def _cuEventCreate(self, event: Any, flags: int) -> int:
        self.events.add(put(event, self._number()))
        return 0

    def _cuEventDestroy(self, event: int) -> int:
        self.events.discard(event)  # a mark may outlive the test whose library it was
        return 0

    def _cuEventRecord(self, event: int, stream: int) -> int:
        self.calls.append("EventRecord")
        return 0

    def _cuEventQuery(self, event: int) -> int:
        return 0 if self.events_happen else NOT_READY

    def _cuMemHostAlloc(self, address: Any, num_bytes: int, flags: int) -> int:
        self.calls.append("MemHostAlloc")
        kept = (ctypes.c_ubyte * num_bytes)()
        self.pinned.append(kept)
        put(address, ctypes.addressof(kept))
        return 0

    def _cuMemsetD8Async(self, at: int, byte: int, num_bytes: int, stream: int) -> int:
        self.calls.append("MemsetD8Async")
        return 0

    def _cuStreamSynchronize(self, stream: int) -> int:
        self.calls.append("StreamSynchronize")
        return 0

    def _cuMemcpyHtoDAsync(self, to: int, host: int, num_bytes: int, stream: int) -> int:
        self.calls.append("MemcpyHtoDAsync")
        ctypes.memmove(self._host_of(to), host, num_bytes)
        return 0

    def _cuMemcpyDtoHAsync(self, host: int, at: int, num_bytes: int, stream: int) -> int:
        self.calls.append("MemcpyDtoHAsync")
        ctypes.memmove(host, self._host_of(at), num_bytes)
        return 0

    def _host_of(self, address: int) -> int:
        """Where the bytes at an address of the device really are."""
        start = max(at for at in self.mapped if at <= address)
        return ctypes.addressof(ctypes.c_ubyte.from_buffer(self.mapped[start], address - start))

    def _cuMemGetAllocationGranularity(self, grain: Any, properties: Any, option: int) -> int:
        put(grain, GRAIN_BYTES)
        return 0

    def _cuMemCreate(self, handle: Any, num_bytes: int, properties: Any, flags: int) -> int:
        if num_bytes > self.room_bytes:
            return OUT_OF_MEMORY
        self.calls.append("MemCreate")
        fd = os.memfd_create("baton-fake-libcuda")
        os.ftruncate(fd, num_bytes)
        self.memory[put(handle, self._number())] = fd
        return 0

    def _cuMemRelease(self, handle: int) -> int:
        self.calls.append("MemRelease")
        os.close(self.memory.pop(handle))
        return 0

    def _cuMemAddressReserve(
        self, at: Any, num_bytes: int, align: int, wish: int, flags: int
    ) -> int:
        self.reserved[self._next_address] = num_bytes
        put(at, self._next_address)
        self._next_address += num_bytes
        return 0

    def _cuMemAddressFree(self, at: int, num_bytes: int) -> int:
        assert self.reserved.pop(at) == num_bytes and at not in self.mapped
        return 0

    def _cuMemMap(self, at: int, num_bytes: int, offset: int, handle: int, flags: int) -> int:
        if os.fstat(self.memory[handle]).st_size < num_bytes:
            return INVALID
        self.calls.append("MemMap")
        self.mapped[at] = mmap.mmap(self.memory[handle], num_bytes)
        return 0

    def _cuMemSetAccess(self, at: int, num_bytes: int, access: Any, count: int) -> int:
        return 0 if self.has_peer_access else NO_PEER

    def _cuMemUnmap(self, at: int, num_bytes: int) -> int:
        self.calls.append("MemUnmap")
        self.mapped.pop(at).close()
        return 0

    def _cuMemExportToShareableHandle(self, into: Any, handle: int, kind: int, flags: int) -> int:
        self.calls.append("MemExportToShareableHandle")
        put(into, os.dup(self.memory[handle]), ctypes.c_int)
        return 0

    def _cuMemImportFromShareableHandle(self, handle: Any, fd: int, kind: int) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:baton-fake-libcuda"):
            return INVALID
        self.calls.append("MemImportFromShareableHandle")
        self.memory[put(handle, self._number())] = os.dup(fd)
        return 0


@contextmanager
def in_process(fake: FakeLibcuda) -> Iterator[None]:
    """Within, calls go to this process's library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libcuda, "library", lambda: fake)
        patch.setattr(virtual_memory, "declared", lambda library: library)
        yield
