"""Invented machines for the tests of `baton doctor`: one that has everything, and another."""

from dataclasses import replace

from controlplane.doctor.facts import (
    ComputeFacts,
    Facts,
    GpuFacts,
    MemoryFacts,
    NetworkFacts,
    RdmaDevice,
)
from controlplane.doctor.trial import Measured

MEMORY = MemoryFacts(
    free_bytes=64 << 30,
    limit_bytes=None,
    memfd_error="",
    dev_shm_bytes=2 << 30,
    shmem_huge_pages="advise",
    memlock_bytes=None,
    ipc_lock_held=False,
    ipc_lock_granted=False,
)
COMPUTE = ComputeFacts(
    kernel="6.8.0-40-generic",
    num_cores=8,
    num_cores_of_machine=8,
    quota_cores=None,
    num_numa_nodes=1,
    clock="tsc",
    num_open_files=65_536,
    native="copy.so",
    native_error="",
)
NIC = RdmaDevice(name="mlx5_0", active=True, rate="200 Gb/sec (4X HDR)")
NETWORK = NetworkFacts(
    loopback_mtu=65_536,
    receive_buffer_bytes=32 << 20,
    send_buffer_bytes=32 << 20,
    rdma=(NIC,),
    rdma_openable=True,
    ucx="0.52.0",
    ucx_forced=False,
)
GPUS = GpuFacts(names=("H200", "H200"), driver_there=True, nccl="2.30.4")
ALL = ("cuda_ipc", "nccl", "shm", "ucx", "tcp")
BEST = Facts(
    host="one",
    boot="b1",
    network_namespace="net:[1]",
    user=1000,
    version="0.1.0",
    transports=ALL,
    memory=MEMORY,
    compute=COMPUTE,
    network=NETWORK,
    gpu=GPUS,
)
OTHER = replace(BEST, host="two", boot="b2")
SHM, TCP = (
    Measured(
        transport=name,
        gb_per_s=speed,
        best_gb_per_s=speed,
        p50_us=100.0,
        p99_us=200.0,
        block_bytes=1 << 18,
        total_bytes=1 << 26,
    )
    for name, speed in (("shm", 10.0), ("tcp", 3.0))
)
