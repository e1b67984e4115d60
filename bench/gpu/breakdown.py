"""Where the milliseconds of a step go: the device's kernels, by the part of the model they do.

A linear's kernels, cuBLAS's or ours, say no layer: they are told apart by the other kernels of ours
before and after them. What lies between two of those is one linear, whatever it launches; only gate
and up, where our kernel also multiplies them, have another linear behind them at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.runner.gpu.device import Device

# The part of a kernel of ours, by its name less `_kernel`.
OURS = {
    "norm": "norm",
    "rope_store": "rope_store",
    "decode": "attention",
    "chunk": "attention",
    "reduce_splits": "reduce_splits",
    "gated": "gated",
    "count": "experts",
    "place": "experts",
    "grouped": "experts",
    "combine": "experts",
    "penalise": "penalties",
    "mask": "mask",
    "tops": "sample",
    "weigh": "sample",
    "plan": "sample",
    "narrow": "sample",
    "pack": "sample",
    "choose": "sample",
}
ENDING = "_kernel"
LINEARS = ("linear_kernel", "sum_parts_kernel")
"""Ours, of any linear."""
SAMPLING = ("penalties", "mask", "sample")
AFTER = ("attention", "reduce_splits")
BETWEEN = {
    ("norm", "rope_store"): "qkv",
    **{(before, "norm"): "o" for before in AFTER},
    ("norm", "gated"): "gate_up",
    ("gated", "norm"): "down",
    ("norm", "norm"): "mlp",
    **{("norm", after): "head" for after in (*SAMPLING, "")},
    **{(before, "norm"): "embedding" for before in ("", "sample")},
    **{(before, after): before for before in SAMPLING for after in SAMPLING},
}
"""What is done between two kernels of ours; "" is the end, or the beginning, of what was seen."""
PARTS = (
    "embedding", "norm", "qkv", "rope_store", "attention", "reduce_splits", "o", "gate_up", "gated",
    "down", "mlp", "experts", "head", "penalties", "mask", "sample", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    name: str
    start_us: float
    us: float


def by_part(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Microseconds of each part that occurs, in the order of PARTS."""
    ordered = sorted(kernels, key=lambda kernel: kernel.start_us)
    names = parts_of(kernel.name for kernel in ordered)
    sums: defaultdict[str, float] = defaultdict(float)
    for part, kernel in zip(names, ordered, strict=True):
        sums[part] += kernel.us
    return {part: sums[part] for part in PARTS if part in sums}


def parts_of(names: Iterable[str]) -> list[str]:
    """The part of each kernel of a sequence as it was launched."""
    found: list[str] = []
    before, waiting = "", list[str]()
    for name in names:
        own = _own(name)
        if not own:
            waiting.append(name)
            continue
        found += [*_between(before, own, waiting), own]
        before, waiting = own, []
    return found + _between(before, "", waiting)


def _between(before: str, after: str, names: Sequence[str]) -> list[str]:
    if before == after == "norm" and len(names) > 1 and names[0] in LINEARS:
        return ["gate_up", *["down"] * (len(names) - 1)]
    return [BETWEEN.get((before, after), "other")] * len(names)


def _own(name: str) -> str:
    return OURS.get(name.removesuffix(ENDING), "") if name.endswith(ENDING) else ""


def kernels_of(device: Device, work: Callable[[], None]) -> list[Kernel]:
    """What the device did for `work`, captured steps' kernels too; on the host, torch's own calls.

    Done once before, unseen. What is launched takes longer under the profiler, what runs does not.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.where.type == "cuda"
    work()
    seen = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[seen]) as profiler:
        work()
        device.record().wait()
    return [
        Kernel(
            name=event.name, start_us=float(event.time_range.start),
            us=float(event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total),
        )
        for event in _events(profiler)
        if not on_gpu or _is_on_device(event)
    ]  # fmt: skip


def _events(profiler: Any) -> Iterable[Any]:
    events: Iterable[Any] = profiler.events()
    return events


def _is_on_device(event: Any) -> bool:
    return str(event.device_type).endswith("CUDA")
