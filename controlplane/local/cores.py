"""How many cores this machine lends us, and which worker gets which. Pure but for the first."""

import os
from collections.abc import Sequence

from protocol.process.machine import cpu_quota


def usable_cores() -> tuple[int, ...]:
    """Cores this process may run on, as few as a container's quota makes them worth."""
    cores = sorted(os.sched_getaffinity(0))
    return tuple(cores[: cores_within(cpu_quota(), num_cores=len(cores))])


def cores_within(quota: float | None, *, num_cores: int) -> int:
    """Whole cores that a quota, in cores, pays for; at least 1."""
    return num_cores if quota is None else max(1, min(num_cores, int(quota)))


def threads_per_worker(*, num_cores: int, num_workers: int) -> int:
    """An equal share, at least 1: workers that crowd each other's cores slow all of them."""
    return max(1, num_cores // num_workers)


def pinned_core(cores: Sequence[int], *, worker: int) -> int:
    """The core of the `worker`th worker, by turns."""
    return cores[worker % len(cores)]
