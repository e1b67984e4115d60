"""The few calls of the CUDA driver API that torch does not give: allocations that can be exported.

Loaded when the first device pool is made; a machine without a driver raises TransferError then.
"""

import ctypes
from functools import cache

from protocol.errors import TransferError

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1
"""CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS: memory of another GPU is mapped over NVLink or PCIe."""
_PORTABLE = 1
"""CU_MEMHOSTREGISTER_PORTABLE: page-locked for all contexts of this process."""


class IpcHandle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise TransferError(f"no CUDA driver: {error}") from error
    at, there, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
    library.cuIpcOpenMemHandle_v2.argtypes = [at, IpcHandle, ctypes.c_uint]
    library.cuMemFree_v2.argtypes = library.cuIpcCloseMemHandle.argtypes = [there]
    library.cuMemAlloc_v2.argtypes = [at, size]
    library.cuMemsetD8Async.argtypes = [there, ctypes.c_ubyte, size, at]
    library.cuStreamSynchronize.argtypes = library.cuCtxSetCurrent.argtypes = [at]
    library.cuIpcGetMemHandle.argtypes = [at, there]
    library.cuMemGetAddressRange_v2.argtypes = [at, at, there]
    library.cuMemHostRegister_v2.argtypes = [at, size, ctypes.c_uint]
    library.cuMemHostUnregister.argtypes = [at]
    library.cuMemcpyDtoHAsync_v2.argtypes = [at, there, size, at]
    library.cuMemcpyHtoDAsync_v2.argtypes = [there, at, size, at]
    library.cuDevicePrimaryCtxRetain.argtypes = [at, ctypes.c_int]
    return library


def _call(name: str, *arguments: object) -> None:
    """Raises TransferError naming the call and CUDA's reason."""
    result = getattr(_library(), name)(*arguments)
    if result:
        reason = ctypes.c_char_p()
        _library().cuGetErrorString(result, ctypes.byref(reason))
        text = (reason.value or b"unknown error").decode(errors="replace")
        raise TransferError(f"{name}: {text} ({result})")


def primary_context(index: int) -> int:
    """The context that torch uses on a device; kept until the process ends."""
    context = ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), index)
    assert context.value
    return context.value


def make_current(context: int) -> None:
    """For the calling thread."""
    _call("cuCtxSetCurrent", context)


def allocate(num_bytes: int, stream: int) -> int:
    """The address of zeros. Filled on a stream of ours and waited for there: on the default one
    the zeros would come after the engine's work, and over what our other streams put there."""
    address = ctypes.c_uint64()
    _call("cuMemAlloc_v2", ctypes.byref(address), num_bytes)
    _call("cuMemsetD8Async", address.value, 0, num_bytes, stream)
    _call("cuStreamSynchronize", stream)
    return address.value


def free(address: int) -> None:
    """Waits for work that uses it."""
    _call("cuMemFree_v2", address)


def export(address: int) -> bytes:
    handle = IpcHandle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), address)
    return bytes(handle)


def open_exported(handle: bytes) -> int:
    """The address of another process's allocation; opening it again gives the same one."""
    address = ctypes.c_uint64()
    packed = IpcHandle.from_buffer_copy(handle)
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), packed, _LAZY_PEER_ACCESS)
    return address.value


def close_exported(address: int) -> None:
    _call("cuIpcCloseMemHandle", address)


def allocation_bytes(address: int) -> int:
    """The size of the allocation that starts there, or before."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
    return size.value - (address - base.value)


def register(address: int, num_bytes: int) -> None:
    """Page-lock memory of this host."""
    _call("cuMemHostRegister_v2", address, num_bytes, _PORTABLE)


def unregister(address: int) -> None:
    _call("cuMemHostUnregister", address)


def download(host: int, device: int, num_bytes: int, stream: int) -> None:
    """Launch a copy into page-locked memory."""
    _call("cuMemcpyDtoHAsync_v2", host, device, num_bytes, stream)


def upload(device: int, host: int, num_bytes: int, stream: int) -> None:
    """Launch a copy out of page-locked memory."""
    _call("cuMemcpyHtoDAsync_v2", device, host, num_bytes, stream)
