"""Facts about this machine that a worker sizes itself by: cores, memory, its own address."""

import ctypes
import os
import resource
import socket
from ipaddress import ip_address
from pathlib import Path

from protocol.errors import SettingsError

_CGROUP = Path("/sys/fs/cgroup")


def parse_cores(text: str) -> frozenset[int]:
    """`0,2-3` is {0, 2, 3}."""
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


SPINS = 100
"""Looks of a waiting compute thread before it sleeps; measured in docs/lab.md. A thread that spins
on is a CPU hog to the scheduler, which then lets it wait behind whoever else wants the core."""


def claim_cores(*, cores: str, threads: int) -> None:
    """Stay on `cores` ("": where we are) with `threads` compute threads (0: one per core,
    as far as the container's quota pays for them).

    Before torch is imported: its thread pool takes size and patience from the environment, for
    every thread that computes. What the operator says there of waiting is left. Raises
    SettingsError for cores that are not ours.
    """
    if cores:
        try:
            os.sched_setaffinity(0, parse_cores(cores))
        except OSError as error:
            raise SettingsError(f"cores: {cores!r}: {error}") from error
    os.environ["OMP_NUM_THREADS"] = str(threads or len(usable_cores()))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def usable_cores() -> list[int]:
    """Cores this process may run on, as few as the container's quota makes them worth."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[: cores_within(cpu_quota(), num_cores=len(cores))]


def cores_within(quota: float | None, *, num_cores: int) -> int:
    """Whole cores that a quota, in cores, pays for; at least 1."""
    return num_cores if quota is None else max(1, min(num_cores, int(quota)))


def check_device(setting: str) -> None:
    """Whether the driver sees the GPU that `cuda` or `cuda:N` names, which is known long before
    torch is imported. Raises SettingsError."""
    kind, _, index = setting.partition(":")
    if kind != "cuda":
        return
    there = num_gpus()
    if int(index or 0) >= there:
        raise SettingsError(
            f"device: {setting!r}: NVIDIA's driver shows {there} GPUs here; use auto or cpu, or "
            "give this container a GPU (nvidia.com/gpu in its limits, docker run --gpus all)"
        )


def raise_descriptor_limit() -> int:
    """As many open files and sockets as this process may have; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS says "unlimited" and means less
        return soft
    return hard


def free_memory_bytes() -> int:
    """What may still be allocated: of the machine's memory and of the container's limit."""
    free = [_meminfo("MemAvailable")]
    limit, used = read_number(_CGROUP / "memory.max"), read_number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        free.append(max(0, limit - used))
    return min(free)


def cpu_quota() -> float | None:
    """Cores whose time the container pays for; None: no limit."""
    return parse_quota(read_text(_CGROUP / "cpu.max"))


def parse_quota(cpu_max: str) -> float | None:
    """`150000 100000` is one core and a half; `max 100000` no limit."""
    most, _, period = cpu_max.partition(" ")
    limited = most.isdigit() and period.isdigit() and int(period) > 0
    return int(most) / int(period) if limited else None


def read_number(path: Path) -> int | None:
    """What a file of the kernel says; None for one that is not there, or no number."""
    text = read_text(path)
    return int(text) if text.isdigit() else None


def read_text(path: Path) -> str:
    """Without the space around it; empty for a file that is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def host_name() -> str:
    return socket.gethostname()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there; other names than `localhost`, and
    those below it, are taken for reachable."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def num_gpus() -> int:
    """Of those that CUDA_VISIBLE_DEVICES leaves; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that NVIDIA's driver speaks here; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/meminfo has no {field}")
