"""What one process has of a device's memory: its own allocations, and those of others it mapped.

A source is known by a random token, never by its process id or address: two containers may have
equal ones. Loads no torch. Methods may be called from any thread on which the device is current.
"""

import secrets
import struct
from dataclasses import dataclass

from kvtransfer.device import libcuda, virtual_memory
from kvtransfer.device.driver import CannotMap, Exported
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

_TOKEN_BYTES = 16
_HANDLE = struct.Struct(f"<{_TOKEN_BYTES}sQQ")
"""The token of whose memory it is, its address there, and the bytes that are mapped there."""


@dataclass(frozen=True, slots=True)
class _Allocation:
    handle: int
    num_bytes: int
    """Mapped: rounded up."""


class Allocations:
    """Of device `index` of those visible, whose name for other processes is `device`."""

    def __init__(self, index: int, *, device: str) -> None:
        self._index = index
        self._device = device
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._own: dict[int, _Allocation] = {}
        self._opened: dict[int, int] = {}
        """Mapped bytes of others' memory, by its address here."""

    def allocate(self, num_bytes: int) -> Span:
        """Memory of any content. Raises TransferError when there is no room."""
        rounded_bytes = virtual_memory.rounded(num_bytes, self._index)
        handle = virtual_memory.create(rounded_bytes, self._index)
        try:
            address = virtual_memory.map_memory(handle, rounded_bytes, self._index)
        except TransferError:
            virtual_memory.release(handle)
            raise
        self._own[address] = _Allocation(handle, rounded_bytes)
        return Span(address, num_bytes)

    def free(self, span: Span) -> None:
        """Ours no more; peers that mapped it keep it."""
        allocation = self._own.pop(span.address)
        virtual_memory.unmap(span.address, allocation.num_bytes)
        virtual_memory.release(allocation.handle)

    def export(self, span: Span) -> Exported:
        """Raises TransferError where the device gives no descriptors."""
        if not virtual_memory.can_export(self._index):
            raise TransferError(f"GPU {self._device} gives no descriptors of its memory")
        allocation = self._own[span.address]
        handle = _HANDLE.pack(self._token, span.address, allocation.num_bytes)
        return Exported(handle=handle, fd=virtual_memory.export_fd(allocation.handle))

    def open(self, handle: bytes, fd: int, *, num_bytes: int, device: str) -> Span:
        """Raises CannotMap."""
        if len(handle) != _HANDLE.size:
            raise CannotMap(f"a handle of {len(handle)} bytes")
        token, address, mapped_bytes = _HANDLE.unpack(handle)
        if mapped_bytes < num_bytes:
            raise CannotMap(f"that memory has fewer than {num_bytes} bytes")
        if token == self._token:
            return self._own_span(address, num_bytes)
        try:
            address = self._map(fd, mapped_bytes)
        except TransferError as error:
            raise CannotMap(f"{self._why_not(device)}: {error}") from error
        self._opened[address] = mapped_bytes
        return Span(address, num_bytes)

    def close(self, span: Span) -> None:
        """Of what `open` gave; our own memory stays."""
        mapped_bytes = self._opened.pop(span.address, None)
        if mapped_bytes is not None:
            virtual_memory.unmap(span.address, mapped_bytes)

    def _own_span(self, address: int, num_bytes: int) -> Span:
        own = self._own.get(address)
        if own is None or own.num_bytes < num_bytes:
            raise CannotMap("it is our own memory, and not allocated any more")
        return Span(address, num_bytes)

    def _map(self, fd: int, mapped_bytes: int) -> int:
        handle = virtual_memory.import_fd(fd)
        try:
            return virtual_memory.map_memory(handle, mapped_bytes, self._index)
        finally:
            virtual_memory.release(handle)  # the mapping keeps the memory

    def _why_not(self, device: str) -> str:
        """What stands between us and memory of that device, as far as CUDA says."""
        try:
            visible = libcuda.visible_devices()
            if device not in visible:
                return f"GPU {device} is not among those that this process sees"
            if not libcuda.can_access(self._index, visible.index(device)) and (
                visible[self._index] != device
            ):
                return f"GPU {self._device} has no peer access to GPU {device}"
        except TransferError as error:
            return f"GPU {device} cannot be asked about ({error})"
        return f"memory of GPU {device} cannot be mapped"
