"""Times work on a device: launched many times, waited for once.

On a GPU by its own events, which wait for nobody's look at them; elsewhere by the host's clock.
"""

import statistics
import time
from collections.abc import Callable

import torch

from engine.runner.gpu.device import Device

ROUNDS = 5


def seconds(device: Device, work: Callable[[], object], *, times: int) -> float:
    """Median over ROUNDS of the seconds that one of `times` takes, after one for warm-up."""
    device.bind()
    work()
    device.record().wait()
    took_s = _by_events if device.where.type == "cuda" else _by_the_host
    return statistics.median(took_s(device, work, times) / times for _ in range(ROUNDS))


def _by_events(device: Device, work: Callable[[], object], times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(times):
        work()
    end.record()
    device.record().wait()
    return 1e-3 * float(begin.elapsed_time(end))


def _by_the_host(device: Device, work: Callable[[], object], times: int) -> float:
    started_s = time.perf_counter()
    for _ in range(times):
        work()
    device.record().wait()
    return time.perf_counter() - started_s


def copy_bytes_per_s(device: Device, *, num_bytes: int) -> float:
    """Read and written by a copy within the device's memory: what a decode step is held to."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device.where)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds(device, lambda: target.copy_(source), times=10)


def matrix_flops_per_s(device: Device, *, size: int, dtype: torch.dtype) -> float:
    """Of a square product of `size`, weights and activations in `dtype`: what a prefill is held
    to."""
    left, right = (torch.randn(size, size, device=device.where, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    taken_s = seconds(device, lambda: torch.mm(left, right, out=out), times=10)
    return 2 * size**3 / taken_s
