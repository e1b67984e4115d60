"""Checks of memory: can it be shared, is there enough, may it be pinned. Pure: facts in,
findings out."""

from controlplane.doctor.facts import Facts, MemoryFacts
from controlplane.doctor.finding import Finding, note, ok, size, warn

ENOUGH_FREE_BYTES = 1 << 30
"""Less cannot hold a small model and a pool."""
ENOUGH_SHM_BYTES = 1 << 30
"""NCCL takes tens of MB a communicator, UCX segments of its own; containers get 64 MiB unasked."""
ENOUGH_MEMLOCK_BYTES = 8 << 30
"""A pool that a NIC reads is pinned whole. Containers get 8 MiB or 64 KiB unasked."""


def check(facts: Facts) -> list[Finding]:
    memory = facts.memory
    return [
        _free(memory),
        _limit(memory),
        _shared(memory),
        _dev_shm(memory),
        _huge_pages(memory),
        _memlock(facts),
    ]


def _free(memory: MemoryFacts) -> Finding:
    value = f"{size(memory.free_bytes)} free"
    if memory.free_bytes < ENOUGH_FREE_BYTES:
        return warn(
            "memory", value, "Free memory or raise the container's limit: pools come out of it."
        )
    return ok("memory", value)


def _limit(memory: MemoryFacts) -> Finding:
    if memory.limit_bytes is None:
        return ok("memory-limit", "none")
    return note(
        "memory-limit",
        f"{size(memory.limit_bytes)} for the container, shared memory counted",
        "Keep --kv-bytes and the weights together below the limit, or the kernel kills the worker.",
    )


def _shared(memory: MemoryFacts) -> Finding:
    if memory.memfd_error:
        return warn(
            "shared-memory",
            f"cannot be passed between processes: {memory.memfd_error}",
            "Allow memfd_create and unix sockets in the container's seccomp profile.",
        )
    return ok("shared-memory", "memfd, passed over a unix socket and mapped; bound by free memory")


def _dev_shm(memory: MemoryFacts) -> Finding:
    if memory.dev_shm_bytes is None:
        value = "there is none"
    else:
        value = size(memory.dev_shm_bytes)
        if memory.dev_shm_bytes >= ENOUGH_SHM_BYTES:
            return ok("dev-shm", value)
    return note(
        "dev-shm",
        f"{value} (Baton's pools do not lie there; NCCL's and UCX's buffers do)",
        "Mount a memory-backed volume of 1 GiB or more at /dev/shm before using NCCL or UCX.",
    )


def _huge_pages(memory: MemoryFacts) -> Finding:
    value = memory.shmem_huge_pages
    if value in ("always", "within_size", "advise", "force"):
        return ok("huge-pages", f"{value} for shared memory")
    return note(
        "huge-pages",
        f"{value or 'not offered'} for shared memory",
        "Start workers with --kv-huge-pages, or write advise to"
        " /sys/kernel/mm/transparent_hugepage/shmem_enabled on the host: larger pages copy faster.",
    )


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
