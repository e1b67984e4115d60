"""Checks of what copies the bytes: kernel, cores, clock, compiled loops, GPUs. Pure."""

import re

from controlplane.doctor.facts import ComputeFacts, Facts, GpuFacts
from controlplane.doctor.finding import Finding, note, ok, warn

SEALED_WRITES = (5, 1)
"""The first kernel with F_SEAL_FUTURE_WRITE: before, a reader is only asked not to write."""
CHEAP_CLOCKS = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"})
"""Read without a system call."""
ENOUGH_FILES = 4096
"""A link takes a few descriptors a peer, a client's connection one."""


def check(facts: Facts) -> list[Finding]:
    compute = facts.compute
    return [
        _kernel(compute),
        _cores(compute),
        _numa(compute),
        _clock(compute),
        _open_files(compute),
        _native(compute),
        _gpu(facts.gpu),
        *_gpu_peers(facts.gpu),
        *_nccl(facts.gpu),
    ]


def _kernel(compute: ComputeFacts) -> Finding:
    number = re.match(r"(\d+)\.(\d+)", compute.kernel)
    if number is not None and (int(number[1]), int(number[2])) < SEALED_WRITES:
        return note(
            "kernel",
            compute.kernel,
            "Use Linux 5.1 or newer: there the kernel keeps readers of a pool from writing to it.",
        )
    return ok("kernel", compute.kernel)


def _cores(compute: ComputeFacts) -> Finding:
    value = f"{compute.num_cores} of {compute.num_cores_of_machine}"
    usable = float(compute.num_cores)
    if compute.quota_cores is not None:
        value += f", CPU time of {compute.quota_cores:g}"
        usable = min(usable, compute.quota_cores)
    if usable < 2:
        return note(
            "cores",
            value,
            "Give the worker two cores: the transfer then does not wait for the model, and both"
            " ends can copy.",
        )
    return ok("cores", value)


def _numa(compute: ComputeFacts) -> Finding:
    if compute.num_numa_nodes == 1:
        return ok("numa", "one node")
    return note(
        "numa",
        f"{compute.num_numa_nodes} nodes",
        "Keep the workers of a pair on one node with --cores: memory of another is slower.",
    )


def _clock(compute: ComputeFacts) -> Finding:
    if not compute.clock or compute.clock in CHEAP_CLOCKS:
        return ok("clock", compute.clock or "unknown")
    return note(
        "clock",
        f"{compute.clock}, read by a system call",
        "Boot the host with clocksource=tsc if its processor has a stable one.",
    )


def _open_files(compute: ComputeFacts) -> Finding:
    value = f"{compute.num_open_files} descriptors"
    if compute.num_open_files < ENOUGH_FILES:
        return note("open-files", value, f"Raise the limit of open files to {ENOUGH_FILES}.")
    return ok("open-files", value)


def _native(compute: ComputeFacts) -> Finding:
    if not compute.native_error:
        return ok("native-copy", compute.native)
    remedy = "Set XDG_CACHE_HOME to a folder that the worker may write to and load libraries from."
    if "compiler" in compute.native_error:
        remedy = "Install a C compiler (gcc or clang) where the worker runs: its copies are faster."
    return warn("native-copy", compute.native_error, remedy)


def _gpu(gpu: GpuFacts) -> Finding:
    if gpu.names:
        return ok("gpu", ", ".join(gpu.names))
    if gpu.driver_there:
        return warn(
            "gpu",
            f"the machine has a driver, this process no GPU: {gpu.error}",
            "Ask for the GPU: nvidia.com/gpu in the pod's resources, or --gpus of the container.",
        )
    return note("gpu", f"none: {gpu.error}", "Nothing to do, unless there should be one.")


def _gpu_peers(gpu: GpuFacts) -> list[Finding]:
    if len(gpu.names) < 2:
        return []
    if not gpu.no_peer:
        return [ok("gpu-peer-access", "between all pairs")]
    pairs = ", ".join(f"{one} from {other}" for one, other in gpu.no_peer)
    return [
        warn(
            "gpu-peer-access",
            f"missing: {pairs}",
            "Pair workers whose GPUs reach each other (nvidia-smi topo -p2p r), and turn the"
            " IOMMU's and PCIe ACS's isolation off where they do not.",
        )
    ]


def _nccl(gpu: GpuFacts) -> list[Finding]:
    if gpu.nccl:
        return [ok("nccl", gpu.nccl)]
    if gpu.names:
        return [
            warn(
                "nccl",
                "not found",
                "Install torch built for CUDA, which brings libnccl: it is what moves KV between"
                " GPUs of different hosts.",
            )
        ]
    return []
