"""What the doctor knows of one machine, and what it finds worth saying of it: values only.

Facts can travel to another machine. Sizes are bytes, None is "no limit" or "cannot be told" as
each field says.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    free_bytes: int
    """What may still be allocated, the container's limit counted."""
    limit_bytes: int | None
    """Of the container (cgroup). None: no limit."""
    memfd_error: str
    """Why memory cannot be shared by passing a descriptor; "" when it can (it was tried)."""
    dev_shm_bytes: int | None
    """Size of /dev/shm. None: there is none."""
    shmem_huge_pages: str
    """Of the kernel's setting for shared memory, the chosen word; "" when it has none."""
    memlock_bytes: int | None
    """What this process may pin. None: no limit."""
    ipc_lock_held: bool
    """CAP_IPC_LOCK is in effect, so the limit does not count."""
    ipc_lock_granted: bool
    """CAP_IPC_LOCK was given to the container, in effect or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeFacts:
    kernel: str
    num_cores: int
    """This process may run on."""
    num_cores_of_machine: int
    quota_cores: float | None
    """CPU time the container gets, in cores. None: no limit."""
    num_numa_nodes: int
    clock: str
    """The kernel's clock source."""
    num_open_files: int
    """Descriptors this process may have."""
    native: str
    """Where the compiled copy loop lies, or would."""
    native_error: str
    """Why it cannot be used; "" when it can (it was loaded)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaDevice:
    name: str
    active: bool
    rate: str
    """As the kernel words it, e.g. `100 Gb/sec (4X EDR)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    loopback_mtu: int | None
    receive_buffer_bytes: int | None
    """The most that TCP grows a receive buffer to."""
    send_buffer_bytes: int | None
    rdma: tuple[RdmaDevice, ...]
    rdma_openable: bool
    """/dev/infiniband has a device this process may open."""
    ucx: str
    """Version of the Python package, "" when it is not installed."""
    ucx_forced: bool
    """UCX_TLS is set: UCX is used without RDMA devices, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    names: tuple[str, ...] = ()
    no_peer: tuple[tuple[int, int], ...] = ()
    """Pairs of which the first cannot read the memory of the second."""
    error: str = ""
    """Why there are none, or why they could not be asked."""
    driver_there: bool = False
    """The kernel module is loaded, whether this process reaches the GPU or not."""
    nccl: str = ""
    """Version, "" when the library is not found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    host: str
    boot: str
    """Random name of this boot of this machine: equal means the same machine."""
    network_namespace: str
    user: int
    version: str
    """Of Baton."""
    transports: tuple[str, ...]
    """Those this build has, best first."""
    memory: MemoryFacts
    compute: ComputeFacts
    network: NetworkFacts
    gpu: GpuFacts


Severity = Literal["ok", "note", "warn"]
"""Ok: as it should be. Note: something faster or safer exists, or this cannot be told. Warn: a
transport does not work, or is much slower than this machine could be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    name: str
    """Stable, for scripts."""
    severity: Severity
    value: str
    """What was found, with its unit."""
    remedy: str = ""
    """One sentence, in the imperative. Empty when there is nothing to do."""


def ok(name: str, value: str) -> Finding:
    return Finding(name=name, severity="ok", value=value)


def note(name: str, value: str, remedy: str) -> Finding:
    return Finding(name=name, severity="note", value=value, remedy=remedy)


def warn(name: str, value: str, remedy: str) -> Finding:
    return Finding(name=name, severity="warn", value=value, remedy=remedy)


def size(num_bytes: int) -> str:
    """`num_bytes` in the largest unit of which there is at least one."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}".replace(".0 ", " ")
    return f"{num_bytes} bytes"
