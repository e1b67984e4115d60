"""Reads the facts of this machine from the kernel, within a few milliseconds. Changes nothing,
but that the compiled copy loop is built where it is not yet.

What cannot be read is None or "", never a guess. The GPU is asked elsewhere, because that takes
longer.
"""

import mmap
import os
import resource
import socket
from contextlib import ExitStack, closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from controlplane.doctor.facts import (
    ComputeFacts,
    Facts,
    GpuFacts,
    MemoryFacts,
    NetworkFacts,
    RdmaDevice,
)
from kvtransfer.memory.sealed import create_sealed, open_sealed
from kvtransfer.native.library import KERNELS
from protocol.errors import LayoutMismatch
from protocol.process.kernels.c_kernels import NoKernels
from protocol.process.machine import (
    cpu_quota,
    free_memory_bytes,
    host_name,
    parse_cores,
    read_number,
    read_text,
)
from protocol.process.version import baton_version

_CAP_IPC_LOCK = 14
_CGROUP = Path("/sys/fs/cgroup")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_RDMA = Path("/sys/class/infiniband")


def read_facts(*, transports: tuple[str, ...], gpu: GpuFacts) -> Facts:
    return Facts(
        host=host_name(),
        boot=read_text(Path("/proc/sys/kernel/random/boot_id")),
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
        limit_bytes=read_number(_CGROUP / "memory.max"),
        memfd_error=_share_memory(),
        dev_shm_bytes=_file_system_bytes(Path("/dev/shm")),
        shmem_huge_pages=bracketed(read_text(_HUGE_PAGES / "shmem_enabled")),
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
        quota_cores=cpu_quota(),
        num_numa_nodes=num_listed(read_text(Path("/sys/devices/system/node/online"))),
        clock=read_text(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        num_open_files=open_files,
        native=native,
        native_error=native_error,
    )


def _network() -> NetworkFacts:
    return NetworkFacts(
        loopback_mtu=read_number(Path("/sys/class/net/lo/mtu")),
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
    """Why memory cannot be shared as the shared-memory transport does it; "" when it can: sealed,
    passed and mapped once."""
    with ExitStack() as stack:
        try:
            fd, mapping = create_sealed("baton-doctor", mmap.PAGESIZE)
            stack.callback(os.close, fd)
            stack.enter_context(closing(mapping))
            ours, theirs = map(stack.enter_context, socket.socketpair())
            theirs.settimeout(1.0)
            socket.send_fds(ours, [b"x"], [fd])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            open_sealed(fds[0], what="memory", num_bytes=mmap.PAGESIZE).close()
        except (OSError, IndexError, LayoutMismatch) as error:
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
            ports = sorted((path / "ports").iterdir())
            active = any("ACTIVE" in read_text(port / "state") for port in ports)
            rate = read_text(ports[0] / "rate") if ports else ""
            devices.append(RdmaDevice(name=path.name, active=active, rate=rate))
    return tuple(devices)


def bracketed(words: str) -> str:
    """The word in brackets: `always [never]` is `never`."""
    return words.partition("[")[2].partition("]")[0]


def has_capability(mask: str, bit: int) -> bool:
    """Of a hexadecimal mask as /proc prints it."""
    return bool(int(mask, 16) >> bit & 1)


def num_listed(ranges: str) -> int:
    """How many `0-1,4` names: 3. One for no list."""
    return len(parse_cores(ranges)) if ranges else 1


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
    parted = (line.partition(":") for line in read_text(path).splitlines())
    return {name: value.strip() for name, _, value in parted}


def _last_number(path: Path) -> int | None:
    words = read_text(path).split()
    return int(words[-1]) if words and words[-1].isdigit() else None


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
