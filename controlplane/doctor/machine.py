"""Checks of one machine: its memory, and what copies the bytes: cores, clock, compiled loops, GPUs.

Pure: facts in, findings out.
"""

import re

from controlplane.doctor.facts import (
    ComputeFacts,
    Facts,
    Finding,
    GpuFacts,
    MemoryFacts,
    note,
    ok,
    size,
    warn,
)

ENOUGH_FREE_BYTES = 1 << 30
"""Less cannot hold a small model and a pool."""
ENOUGH_SHM_BYTES = 1 << 30
"""NCCL takes tens of MB a communicator, UCX segments of its own; containers get 64 MiB unasked."""
ENOUGH_MEMLOCK_BYTES = 8 << 30
"""A pool that a NIC reads is pinned whole. Containers get 8 MiB or 64 KiB unasked."""
SEALED_WRITES = (5, 1)
"""The first kernel with F_SEAL_FUTURE_WRITE: before, a reader is only asked not to write."""
CHEAP_CLOCKS = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"})
"""Read without a system call."""
ENOUGH_FILES = 4096
"""A link takes a few descriptors a peer, a client's connection one."""


def check_memory(facts: Facts) -> list[Finding]:
    """Can it be shared, is there enough, may it be pinned."""
    memory = facts.memory
    checks = (_free, _limit, _shared, _dev_shm, _huge_pages)
    return [*(check(memory) for check in checks), _memlock(facts)]


def check_compute(facts: Facts) -> list[Finding]:
    checks = (_kernel, _cores, _numa, _clock, _open_files, _native)
    gpu = facts.gpu
    return [*(check(facts.compute) for check in checks), _gpu(gpu), *_gpu_peers(gpu), *_nccl(gpu)]


def _free(memory: MemoryFacts) -> Finding:
    value = f"{size(memory.free_bytes)} free"
    if memory.free_bytes < ENOUGH_FREE_BYTES:
        remedy = "Free memory or raise the container's limit: pools come out of it."
        return warn("memory", value, remedy)
    return ok("memory", value)


def _limit(memory: MemoryFacts) -> Finding:
    if memory.limit_bytes is None:
        return ok("memory-limit", "none")
    value = f"{size(memory.limit_bytes)} for the container, shared memory counted"
    remedy = (
        "Keep --kv-bytes and the weights together below the limit, or the kernel kills the worker."
    )
    return note("memory-limit", value, remedy)


def _shared(memory: MemoryFacts) -> Finding:
    if memory.memfd_error:
        value = f"cannot be passed between processes: {memory.memfd_error}"
        remedy = "Allow memfd_create and unix sockets in the container's seccomp profile."
        return warn("shared-memory", value, remedy)
    return ok("shared-memory", "memfd, passed over a unix socket and mapped; bound by free memory")


def _dev_shm(memory: MemoryFacts) -> Finding:
    num_bytes = memory.dev_shm_bytes
    value = "there is none" if num_bytes is None else size(num_bytes)
    if num_bytes is not None and num_bytes >= ENOUGH_SHM_BYTES:
        return ok("dev-shm", value)
    value += " (Baton's pools do not lie there; NCCL's and UCX's buffers do)"
    remedy = "Mount a memory-backed volume of 1 GiB or more at /dev/shm before using NCCL or UCX."
    return note("dev-shm", value, remedy)


def _huge_pages(memory: MemoryFacts) -> Finding:
    value = memory.shmem_huge_pages
    if value in ("always", "within_size", "advise", "force"):
        return ok("huge-pages", f"{value} for shared memory")
    remedy = (
        "Start workers with --kv-huge-pages, or write advise to"
        " /sys/kernel/mm/transparent_hugepage/shmem_enabled on the host: larger pages copy faster."
    )
    return note("huge-pages", f"{value or 'not offered'} for shared memory", remedy)


def _memlock(facts: Facts) -> Finding:
    memory = facts.memory
    if memory.ipc_lock_held or memory.memlock_bytes is None:
        return ok("memlock", "no limit")
    value = f"{size(memory.memlock_bytes)} may be pinned"
    if memory.memlock_bytes >= ENOUGH_MEMLOCK_BYTES:
        return ok("memlock", value)
    remedy = "Raise the container runtime's memlock limit (LimitMEMLOCK=infinity) before RDMA."
    if memory.ipc_lock_granted and facts.user:
        value += f"; IPC_LOCK was granted, but does nothing for user {facts.user}"
        remedy = "Run as root, or raise the runtime's memlock limit: IPC_LOCK needs user 0."
    return (warn if facts.network.rdma else note)("memlock", value, remedy)


def _kernel(compute: ComputeFacts) -> Finding:
    number = re.match(r"(\d+)\.(\d+)", compute.kernel)
    if number is not None and (int(number[1]), int(number[2])) < SEALED_WRITES:
        remedy = (
            "Use Linux 5.1 or newer: there the kernel keeps readers of a pool from writing to it."
        )
        return note("kernel", compute.kernel, remedy)
    return ok("kernel", compute.kernel)


def _cores(compute: ComputeFacts) -> Finding:
    value = f"{compute.num_cores} of {compute.num_cores_of_machine}"
    usable = float(compute.num_cores)
    if compute.quota_cores is not None:
        value += f", CPU time of {compute.quota_cores:g}"
        usable = min(usable, compute.quota_cores)
    if usable < 2:
        remedy = (
            "Give the worker two cores: the transfer then does not wait for the model, and both"
            " ends can copy."
        )
        return note("cores", value, remedy)
    return ok("cores", value)


def _numa(compute: ComputeFacts) -> Finding:
    if compute.num_numa_nodes == 1:
        return ok("numa", "one node")
    remedy = "Keep the workers of a pair on one node with --cores: memory of another is slower."
    return note("numa", f"{compute.num_numa_nodes} nodes", remedy)


def _clock(compute: ComputeFacts) -> Finding:
    if not compute.clock or compute.clock in CHEAP_CLOCKS:
        return ok("clock", compute.clock or "unknown")
    remedy = "Boot the host with clocksource=tsc if its processor has a stable one."
    return note("clock", f"{compute.clock}, read by a system call", remedy)


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
        value = f"the machine has a driver, this process no GPU: {gpu.error}"
        remedy = (
            "Ask for the GPU: nvidia.com/gpu in the pod's resources, or --gpus of the container."
        )
        return warn("gpu", value, remedy)
    return note("gpu", f"none: {gpu.error}", "Nothing to do, unless there should be one.")


def _gpu_peers(gpu: GpuFacts) -> list[Finding]:
    if len(gpu.names) < 2:
        return []
    if not gpu.no_peer:
        return [ok("gpu-peer-access", "between all pairs")]
    pairs = ", ".join(f"{one} from {other}" for one, other in gpu.no_peer)
    remedy = (
        "Pair workers whose GPUs reach each other (nvidia-smi topo -p2p r), and turn the"
        " IOMMU's and PCIe ACS's isolation off where they do not."
    )
    return [warn("gpu-peer-access", f"missing: {pairs}", remedy)]


def _nccl(gpu: GpuFacts) -> list[Finding]:
    if gpu.nccl:
        return [ok("nccl", gpu.nccl)]
    remedy = (
        "Install torch built for CUDA, which brings libnccl: it is what moves KV between"
        " GPUs of different hosts."
    )
    return [warn("nccl", "not found", remedy)] if gpu.names else []
