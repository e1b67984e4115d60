"""Where the milliseconds of a step go: the device's kernels, by the part of the model they do.

Linears are cuBLAS's, whose kernels' names say no layer: they are told apart by the kernels of ours
before and after them. What lies between two kernels of ours is one linear, whatever it launches.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.runner.gpu.device import Device

# A kernel of ours, by what its name has in it, in the order of asking.
OURS = (
    ("reduce_splits", "reduce_splits"),
    ("decode_kernel", "attention"),
    ("chunk_kernel", "attention"),
    ("rope_store", "rope_store"),
    ("gated", "gated"),
    ("norm_kernel", "norm"),
    ("mask_kernel", "sample"),
    ("penalise_kernel", "sample"),
    ("tops_kernel", "sample"),
    ("weigh_kernel", "sample"),
    ("plan_kernel", "sample"),
    ("narrow_kernel", "sample"),
    ("pack_kernel", "sample"),
    ("choose_kernel", "sample"),
    ("arg_max", "sample"),
    ("grouped_kernel", "experts"),
    ("place_kernel", "experts"),
    ("count_kernel", "experts"),
    ("combine_kernel", "experts"),
)
LINEARS = ("linear_kernel", "sum_parts_kernel")
"""Of ours, told apart like cuBLAS's."""
AFTER = ("attention", "reduce_splits")
BETWEEN = {
    ("norm", "rope_store"): "qkv",
    **{(before, "norm"): "o" for before in AFTER},
    ("norm", "gated"): "gate_up",
    ("gated", "norm"): "down",
    ("norm", "norm"): "mlp",
    ("norm", "sample"): "head",
    ("norm", ""): "head",
    ("", "norm"): "embedding",
    ("sample", "norm"): "embedding",
}
"""What is done between two kernels of ours; "" is the end, or the beginning, of what was seen."""
PARTS = (
    "embedding", "norm", "qkv", "rope_store", "attention", "reduce_splits", "o", "gate_up", "gated",
    "down", "mlp", "experts", "head", "sample", "other",
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
    before, waiting = "", 0
    for name in names:
        own = _own(name)
        if not own:
            waiting += 1
            continue
        found += [BETWEEN.get((before, own), "other")] * waiting + [own]
        before, waiting = own, 0
    return found + [BETWEEN.get((before, ""), "other")] * waiting


def _own(name: str) -> str:
    return next((part for word, part in OURS if word in name), "")


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
            us=float(event.device_time_total if on_gpu else event.self_cpu_time_total),
        )
        for event in _events(profiler)
        if not on_gpu or _is_on_device(event)
    ]  # fmt: skip


def _events(profiler: Any) -> Iterable[Any]:
    events: Iterable[Any] = profiler.events()
    return events


def _is_on_device(event: Any) -> bool:
    return str(event.device_type).endswith("CUDA")
