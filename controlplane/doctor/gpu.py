"""Asks the NVIDIA driver and NCCL what they are, without torch.

`ask_driver` does so in a process of its own (`python -m controlplane.doctor.gpu`), because a
driver in trouble hangs or crashes whoever calls it. Opens no GPU for computing.
"""

import ctypes
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec

from controlplane.doctor.facts import GpuFacts
from kvtransfer.device import libnccl
from protocol.errors import TransferError

_NAME_BYTES = 256
_DRIVER = Path("/proc/driver/nvidia/version")


def ask_driver(*, timeout_s: float) -> GpuFacts:
    """What there is; never raises, and never takes longer."""
    driver_there = _DRIVER.exists()
    try:
        child = subprocess.run(
            [sys.executable, "-m", "controlplane.doctor.gpu"],
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return msgspec.json.decode(child.stdout, type=GpuFacts)
    except subprocess.TimeoutExpired:
        error = f"the driver did not answer within {timeout_s:.0f} s"
    except (OSError, msgspec.MsgspecError):
        error = "asking the driver failed"
    return GpuFacts(error=error, driver_there=driver_there)


def read_driver() -> GpuFacts:
    """In this process."""
    facts = partial(GpuFacts, driver_there=_DRIVER.exists(), nccl=_nccl_version())
    try:
        names, no_peer = _devices(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return facts(error="no NVIDIA driver library")
    except _DriverError as error:
        return facts(error=str(error))
    return facts(names=names, no_peer=no_peer, error="" if names else "the driver shows no GPU")


class _DriverError(Exception):
    """A call of the driver did not succeed."""


def _devices(cuda: ctypes.CDLL) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names, and the pairs of which the first cannot read the memory of the second."""
    count = _count(cuda)
    no_peer = (
        (one, other)
        for one in range(count)
        for other in range(count)
        if one != other and not _reaches(cuda, one, other)
    )
    return tuple(_name(cuda, index) for index in range(count)), tuple(no_peer)


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(cuda, function)(*arguments)
    if code:
        raise _DriverError(f"{function} answers {code}")


def _count(cuda: ctypes.CDLL) -> int:
    _call(cuda, "cuInit", 0)
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def _name(cuda: ctypes.CDLL, index: int) -> str:
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(cuda, "cuDeviceGetName", name, _NAME_BYTES, _device(cuda, index))
    return name.value.decode(errors="replace")


def _reaches(cuda: ctypes.CDLL, one: int, other: int) -> bool:
    can = ctypes.c_int()
    pair = _device(cuda, one), _device(cuda, other)
    _call(cuda, "cuDeviceCanAccessPeer", ctypes.byref(can), *pair)
    return bool(can.value)


def _device(cuda: ctypes.CDLL, index: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    return device


def _nccl_version() -> str:
    """Of the library that torch's wheels bring, else of the system's; "" for none."""
    version = ctypes.c_int()
    try:
        code = libnccl.find().ncclGetVersion(ctypes.byref(version))
    except (TransferError, AttributeError):
        return ""
    return "" if code else nccl_text(version.value)


def nccl_text(code: int) -> str:
    """23004 is 2.30.4; before 2.9 a digit fewer, 2804 is 2.8.4."""
    scale = 10_000 if code >= 10_000 else 1_000
    return f"{code // scale}.{code % scale // 100}.{code % 100}"


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(read_driver()))
