"""How many cores this machine lends us, and which worker gets which. Pure but for `usable`."""

import os
from collections.abc import Sequence
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> tuple[int, ...]:
    """Cores this process may run on, as few as a container's quota makes them worth."""
    cores = sorted(os.sched_getaffinity(0))
    return tuple(cores[: quota_cores(_quota(), num_cores=len(cores))])


def quota_cores(quota: str, *, num_cores: int) -> int:
    """Cores that a cgroup's `cpu.max` ("max 100000", "150000 100000") pays for; at least 1."""
    match quota.split():
        case [limit, period] if limit.isdigit() and period.isdigit() and int(period) > 0:
            return max(1, min(num_cores, int(limit) // int(period)))
        case _:
            return num_cores


def threads_per_worker(*, num_cores: int, num_workers: int) -> int:
    """An equal share, at least 1: workers that crowd each other's cores slow all of them."""
    return max(1, num_cores // num_workers)


def pinned_core(cores: Sequence[int], *, worker: int) -> int:
    """The core of the `worker`th worker, by turns."""
    return cores[worker % len(cores)]


def _quota() -> str:
    try:
        return CGROUP_QUOTA.read_text()
    except OSError:
        return ""
