"""CUDA's virtual memory calls: physical memory, addresses for it, and a descriptor to hand it on.

Memory lives as long as a mapping of it does, in whichever process: an owner's death takes nothing
from a peer. Structures are those of cuda.h since 11.0. Knows neither pools nor who is a peer.
"""

import ctypes
from functools import cache
from typing import Final

from kvtransfer.device import libcuda
from protocol.errors import TransferError

_PINNED: Final = 1
_ON_DEVICE: Final = 1
_NO_HANDLE: Final = 0
_DESCRIPTOR: Final = 1
"""CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"""
_READ_WRITE: Final = 3
_RECOMMENDED: Final = 1
_DESCRIPTORS_SUPPORTED: Final = 103
"""CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"""


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class AllocationFlags(ctypes.Structure):
    """CUmemAllocationProp.allocFlags."""

    _fields_ = (
        ("compression_type", ctypes.c_ubyte), ("gpu_direct_rdma_capable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort), ("reserved", ctypes.c_ubyte * 4),
    )  # fmt: skip


class AllocationProperties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int), ("requested_handle_types", ctypes.c_int), ("location", Location),
        ("win32_handle_meta_data", ctypes.c_void_p), ("flags", AllocationFlags),
    )  # fmt: skip


class AccessDescription(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


@cache
def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The driver library, told the types of what is called here."""
    at, there, size, flags = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_ulonglong
    library.cuMemGetAllocationGranularity.argtypes = [at, at, ctypes.c_int]
    library.cuMemCreate.argtypes = [at, size, at, flags]
    library.cuMemAddressReserve.argtypes = [at, size, size, there, flags]
    library.cuMemMap.argtypes = [there, size, size, flags, flags]
    library.cuMemSetAccess.argtypes = [there, size, at, size]
    library.cuMemUnmap.argtypes = library.cuMemAddressFree.argtypes = [there, size]
    library.cuMemRelease.argtypes = [flags]
    library.cuMemExportToShareableHandle.argtypes = [at, flags, ctypes.c_int, flags]
    library.cuMemImportFromShareableHandle.argtypes = [at, at, ctypes.c_int]
    return library


def _call(name: str, *arguments: object) -> None:
    libcuda.check(name, getattr(declared(libcuda.library()), name)(*arguments))


def can_export(index: int) -> bool:
    """Whether a device's memory can be handed on by a descriptor."""
    return bool(libcuda.attribute(_DESCRIPTORS_SUPPORTED, index))


def rounded(num_bytes: int, index: int) -> int:
    """What a device gives at least for so many bytes: its memory comes in pieces of 2 MiB."""
    grain, properties = ctypes.c_size_t(), _properties(index)
    _call(
        "cuMemGetAllocationGranularity", ctypes.byref(grain), ctypes.byref(properties), _RECOMMENDED
    )
    return -(-num_bytes // grain.value) * grain.value


def create(num_bytes: int, index: int) -> int:
    """A handle of physical memory on a device, as many bytes as `rounded` says. The memory lives
    until its handles are released and it is mapped nowhere."""
    handle, properties = ctypes.c_ulonglong(), _properties(index)
    _call("cuMemCreate", ctypes.byref(handle), num_bytes, ctypes.byref(properties), 0)
    return handle.value


def map_memory(handle: int, num_bytes: int, index: int) -> int:
    """The address at which a device now reads and writes the memory of a handle: all of it, or
    this fails, as when the device has no way to the memory's."""
    address = ctypes.c_uint64()
    _call("cuMemAddressReserve", ctypes.byref(address), num_bytes, 0, 0, 0)
    mapped = False
    try:
        _call("cuMemMap", address.value, num_bytes, 0, handle, 0)
        mapped = True
        access = AccessDescription(Location(_ON_DEVICE, index), _READ_WRITE)
        _call("cuMemSetAccess", address.value, num_bytes, ctypes.byref(access), 1)
    except TransferError:
        if mapped:
            _call("cuMemUnmap", address.value, num_bytes)
        _call("cuMemAddressFree", address.value, num_bytes)
        raise
    return address.value


def unmap(address: int, num_bytes: int) -> None:
    """No launched work may use it any more."""
    _call("cuMemUnmap", address, num_bytes)
    _call("cuMemAddressFree", address, num_bytes)


def release(handle: int) -> None:
    _call("cuMemRelease", handle)


def export_fd(handle: int) -> int:
    """A new descriptor of the memory; the caller closes it."""
    fd = ctypes.c_int(-1)
    _call("cuMemExportToShareableHandle", ctypes.byref(fd), handle, _DESCRIPTOR, 0)
    return fd.value


def import_fd(fd: int) -> int:
    """A handle of the memory behind a descriptor of whichever process; `fd` stays the caller's."""
    handle = ctypes.c_ulonglong()
    _call("cuMemImportFromShareableHandle", ctypes.byref(handle), fd, _DESCRIPTOR)
    return handle.value


def _properties(index: int) -> AllocationProperties:
    kind = _DESCRIPTOR if can_export(index) else _NO_HANDLE
    return AllocationProperties(_PINNED, kind, Location(_ON_DEVICE, index))
