"""The few calls of the CUDA driver API that torch does not give: streams of our own, events.

Loaded when the first device pool is made; a machine without a driver raises TransferError then.
Memory that other processes map is `kvtransfer.device.virtual_memory`.
"""

import ctypes
import uuid
from functools import cache
from typing import Final

from protocol.errors import TransferError

SUCCESS: Final = 0
_NOT_READY: Final = 600
_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor it for ours."""
_WITHOUT_TIMES: Final = 2
"""CU_EVENT_DISABLE_TIMING."""
_PORTABLE: Final = 1
"""CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE: page-locked for every context of this
process."""


@cache
def library() -> ctypes.CDLL:
    """Raises TransferError where there is none."""
    try:
        loaded = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise TransferError(f"no CUDA driver: {error}") from error
    at, there, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
    loaded.cuDevicePrimaryCtxRetain.argtypes = [at, ctypes.c_int]
    loaded.cuCtxSetCurrent.argtypes = loaded.cuStreamSynchronize.argtypes = [at]
    loaded.cuStreamCreateWithPriority.argtypes = [at, ctypes.c_uint, ctypes.c_int]
    loaded.cuStreamDestroy_v2.argtypes = loaded.cuEventDestroy_v2.argtypes = [at]
    loaded.cuEventCreate.argtypes = [at, ctypes.c_uint]
    loaded.cuEventRecord.argtypes = [at, at]
    loaded.cuStreamWaitEvent.argtypes = [at, at, ctypes.c_uint]
    loaded.cuEventQuery.argtypes = [at]
    loaded.cuMemsetD8Async.argtypes = [there, ctypes.c_ubyte, size, at]
    loaded.cuMemHostAlloc.argtypes = loaded.cuMemHostRegister_v2.argtypes = [
        at,
        size,
        ctypes.c_uint,
    ]
    loaded.cuMemHostUnregister.argtypes = [at]
    loaded.cuMemcpyHtoDAsync_v2.argtypes = [there, at, size, at]
    loaded.cuMemcpyDtoHAsync_v2.argtypes = [at, there, size, at]
    return loaded


def call(name: str, *arguments: object) -> None:
    """Raises TransferError naming the call and CUDA's reason."""
    check(name, getattr(library(), name)(*arguments))


def check(name: str, result: int) -> None:
    """Raise TransferError for what is no success."""
    if result != SUCCESS:
        reason = ctypes.c_char_p()
        library().cuGetErrorString(result, ctypes.byref(reason))
        text = (reason.value or b"unknown error").decode(errors="replace")
        raise TransferError(f"{name}: {text} ({result})")


def primary_context(index: int) -> int:
    """The context that torch uses on a device; kept until the process ends."""
    context = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), index)
    assert context.value
    return context.value


def make_current(context: int) -> None:
    """For the calling thread."""
    call("cuCtxSetCurrent", context)


def create_stream() -> int:
    """A stream of its own, of the least priority: its kernels take what the engine's leave."""
    stream, least, greatest = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    call("cuCtxGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
    call("cuStreamCreateWithPriority", ctypes.byref(stream), _NON_BLOCKING, least.value)
    assert stream.value
    return stream.value


def destroy_stream(stream: int) -> None:
    """Does not wait: what is launched on it still happens."""
    call("cuStreamDestroy_v2", stream)


def wait_for_stream(stream: int) -> None:
    call("cuStreamSynchronize", stream)


def record_event(stream: int) -> int:
    """A new event at the point that the stream has reached."""
    event = ctypes.c_void_p()
    call("cuEventCreate", ctypes.byref(event), _WITHOUT_TIMES)
    assert event.value
    try:
        call("cuEventRecord", event.value, stream)
    except TransferError:
        destroy_event(event.value)
        raise
    return event.value


def has_happened(event: int) -> bool:
    """Never waits. Raises TransferError when the device has failed."""
    result = library().cuEventQuery(event)
    if result == _NOT_READY:
        return False
    check("cuEventQuery", result)
    return True


def wait_for_event(stream: int, event: int) -> None:
    """What is launched on the stream from now on happens after the event, of any stream."""
    call("cuStreamWaitEvent", stream, event, 0)


def destroy_event(event: int) -> None:
    call("cuEventDestroy_v2", event)


def clear(address: int, num_bytes: int, stream: int) -> None:
    """Launch zeros."""
    call("cuMemsetD8Async", address, 0, num_bytes, stream)


def allocate_pinned(num_bytes: int) -> int:
    """The address of host memory that the device copies from and to by itself; never given back."""
    address = ctypes.c_void_p()
    call("cuMemHostAlloc", ctypes.byref(address), num_bytes, _PORTABLE)
    assert address.value
    return address.value


def upload(address: int, host: int, num_bytes: int, stream: int) -> None:
    """Launch a copy from page-locked memory at `host` to the device."""
    call("cuMemcpyHtoDAsync_v2", address, host, num_bytes, stream)


def download(host: int, address: int, num_bytes: int, stream: int) -> None:
    """Launch a copy from the device to page-locked memory at `host`."""
    call("cuMemcpyDtoHAsync_v2", host, address, num_bytes, stream)


def visible_devices() -> list[str]:
    """The uuids of the devices this process sees, by their index."""
    count, found = ctypes.c_int(), []
    call("cuDeviceGetCount", ctypes.byref(count))
    for index in range(count.value):
        packed = (ctypes.c_ubyte * 16)()
        call("cuDeviceGetUuid_v2", ctypes.byref(packed), index)
        found.append(str(uuid.UUID(bytes=bytes(packed))))
    return found


def can_access(index: int, peer: int) -> bool:
    """Whether device `index` can map memory of device `peer`."""
    can = ctypes.c_int()
    call("cuDeviceCanAccessPeer", ctypes.byref(can), index, peer)
    return bool(can.value)


def attribute(number: int, index: int) -> int:
    """One CUdevice_attribute of a device."""
    value = ctypes.c_int()
    call("cuDeviceGetAttribute", ctypes.byref(value), number, index)
    return value.value


def register(address: int, num_bytes: int) -> None:
    """Page-lock memory of this host."""
    call("cuMemHostRegister_v2", address, num_bytes, _PORTABLE)


def unregister(address: int) -> None:
    call("cuMemHostUnregister", address)
