"""Reads the facts of this machine from the kernel, within a few milliseconds. Changes nothing,
but that the compiled copy loop is built where it is not yet.

What cannot be read is None or "", never a guess. The GPU is asked elsewhere, because that takes
longer.
"""

import fcntl
import mmap
import os
import resource
import socket
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from controlplane.checkout import baton_version
from controlplane.doctor.facts import (
    ComputeFacts,
    Facts,
    GpuFacts,
    MemoryFacts,
    NetworkFacts,
    RdmaDevice,
)
from kvtransfer.native.library import KERNELS
from protocol.process.c_kernels import NoKernels
from protocol.process.machine import free_memory_bytes, host_name

_CAP_IPC_LOCK = 14
_CGROUP = Path("/sys/fs/cgroup")
_RDMA = Path("/sys/class/infiniband")


def facts(*, transports: tuple[str, ...], gpu: GpuFacts) -> Facts:
    return Facts(
        host=host_name(),
        boot=_read(Path("/proc/sys/kernel/random/boot_id")),
        network_namespace=_link(Path("/proc/self/ns/net")),
        user=os.geteuid(),
        version=baton_version(),
        transports=transports,
        memory=_memory(),
        compute=_compute(),
        network=_network(),
        gpu=gpu,
    )


def _memory() -> MemoryFacts:
    pinned, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = _fields(Path("/proc/self/status"))
    return MemoryFacts(
        free_bytes=free_memory_bytes(),
        limit_bytes=_number(_CGROUP / "memory.max"),
        memfd_error=_share_memory(),
        dev_shm_bytes=_file_system_bytes(Path("/dev/shm")),
        shmem_huge_pages=chosen(_read(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled"))),
        memlock_bytes=None if pinned == resource.RLIM_INFINITY else pinned,
        ipc_lock_held=has_capability(status.get("CapEff", "0"), _CAP_IPC_LOCK),
        ipc_lock_granted=has_capability(status.get("CapBnd", "0"), _CAP_IPC_LOCK),
    )


def _compute() -> ComputeFacts:
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    native, native_error = _native()
    return ComputeFacts(
        kernel=os.uname().release,
        num_cores=len(os.sched_getaffinity(0)),
        num_cores_of_machine=os.cpu_count() or 1,
        quota_cores=quota(_read(_CGROUP / "cpu.max")),
        num_numa_nodes=num_listed(_read(Path("/sys/devices/system/node/online"))),
        clock=_read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        num_open_files=open_files,
        native=native,
        native_error=native_error,
    )


def _network() -> NetworkFacts:
    return NetworkFacts(
        loopback_mtu=_number(Path("/sys/class/net/lo/mtu")),
        receive_buffer_bytes=_last_number(Path("/proc/sys/net/ipv4/tcp_rmem")),
        send_buffer_bytes=_last_number(Path("/proc/sys/net/ipv4/tcp_wmem")),
        rdma=_rdma_devices(),
        rdma_openable=any(
            os.access(path, os.R_OK | os.W_OK) for path in Path("/dev/infiniband").glob("uverbs*")
        ),
        ucx=_installed("ucxx-cu12", "ucxx-cu13", "ucxx"),
        ucx_forced="UCX_TLS" in os.environ,
    )


def _share_memory() -> str:
    """Do what the shared-memory transport does, once: a sealed memfd, passed and mapped."""
    with ExitStack() as stack:
        try:
            fd = os.memfd_create("baton-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            stack.callback(os.close, fd)
            os.ftruncate(fd, mmap.PAGESIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.enter_context(ours)
            stack.enter_context(theirs)
            theirs.settimeout(1.0)
            socket.send_fds(ours, [b"x"], [fd])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            for passed in fds:
                stack.callback(os.close, passed)
            mmap.mmap(fds[0], mmap.PAGESIZE, access=mmap.ACCESS_READ).close()
        except (OSError, IndexError, ValueError) as error:
            return str(error) or type(error).__name__
    return ""


def _native() -> tuple[str, str]:
    """Build or find the copy loop as a worker does at its first transfer; a second the first time
    on a machine."""
    library = str(KERNELS.library())
    try:
        KERNELS.load()
    except NoKernels as error:
        return library, str(error)
    return library, ""


def _rdma_devices() -> tuple[RdmaDevice, ...]:
    devices = []
    with suppress(OSError):
        for path in sorted(_RDMA.iterdir()):
            states = [_read(port / "state") for port in sorted((path / "ports").iterdir())]
            rates = [_read(port / "rate") for port in sorted((path / "ports").iterdir())]
            active = any("ACTIVE" in state for state in states)
            devices.append(
                RdmaDevice(name=path.name, active=active, rate=rates[0] if rates else "")
            )
    return tuple(devices)


def chosen(words: str) -> str:
    """The word in brackets: `always [never]` is `never`."""
    return words.partition("[")[2].partition("]")[0]


def has_capability(mask: str, bit: int) -> bool:
    """Of a hexadecimal mask as /proc prints it."""
    return bool(int(mask, 16) >> bit & 1)


def quota(cpu_max: str) -> float | None:
    """`150000 100000` is one core and a half; `max 100000` no limit."""
    most, _, period = cpu_max.partition(" ")
    return int(most) / int(period) if most.isdigit() and period.isdigit() else None


def num_listed(ranges: str) -> int:
    """How many `0-1,4` names: 3; at least 1."""
    count = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            count += int(last or first) - int(first) + 1
    return max(1, count)


def _installed(*names: str) -> str:
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return ""


def _file_system_bytes(path: Path) -> int | None:
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    return stat.f_frsize * stat.f_blocks


def _fields(path: Path) -> dict[str, str]:
    parted = (line.partition(":") for line in _read(path).splitlines())
    return {name: value.strip() for name, _, value in parted}


def _last_number(path: Path) -> int | None:
    words = _read(path).split()
    return int(words[-1]) if words and words[-1].isdigit() else None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
