"""The doctor's judgements, from invented facts: what it finds, how bad, and what to do."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from support.doctor_facts import BEST, COMPUTE, GPUS, MEMORY, NETWORK, NIC, OTHER, SHM, TCP

from controlplane.doctor.facts import Facts, Finding, GpuFacts, size
from controlplane.doctor.machine import check_compute, check_memory
from controlplane.doctor.measure import percentile
from controlplane.doctor.network import check_network, check_pair
from controlplane.doctor.planes import best_plane, measurable, plane_findings, plane_reports
from controlplane.doctor.trial import Unusable
from kvtransfer.transport_names import HOST_TRANSPORTS


def every(facts: Facts) -> list[Finding]:
    return [*check_memory(facts), *check_compute(facts), *check_network(facts)]


def named(name: str, found: Iterable[Finding]) -> Finding:
    (finding,) = [one for one in found if one.name == name]
    return finding


def of_memory(**changes: object) -> Facts:
    return replace(BEST, memory=replace(MEMORY, **changes))  # type: ignore[arg-type]


def of_compute(**changes: object) -> Facts:
    return replace(BEST, compute=replace(COMPUTE, **changes))  # type: ignore[arg-type]


def of_network(**changes: object) -> Facts:
    return replace(BEST, network=replace(NETWORK, **changes))  # type: ignore[arg-type]


def of_gpu(gpu: GpuFacts) -> Facts:
    return replace(BEST, gpu=gpu)


def test_a_machine_with_everything_has_nothing_to_remedy() -> None:
    assert {(one.severity, one.remedy) for one in every(BEST)} == {("ok", "")}


@pytest.mark.parametrize(
    ("facts", "name", "severity", "says", "remedy"),
    [
        (of_memory(free_bytes=1 << 20), "memory", "warn", "1 MiB free", "Free memory"),
        (of_memory(limit_bytes=4 << 30), "memory-limit", "note", "4 GiB", "--kv-bytes"),
        (of_memory(memfd_error="EPERM"), "shared-memory", "warn", "EPERM", "seccomp"),
        (of_memory(dev_shm_bytes=64 << 20), "dev-shm", "note", "64 MiB", "volume"),
        (of_memory(dev_shm_bytes=None), "dev-shm", "note", "there is none", "/dev/shm"),
        (of_memory(shmem_huge_pages="never"), "huge-pages", "note", "never", "shmem_enabled"),
        (of_memory(memlock_bytes=64 << 10), "memlock", "warn", "64 KiB", "LimitMEMLOCK"),
        (of_compute(kernel="4.19.0"), "kernel", "note", "4.19.0", "Linux 5.1"),
        (of_compute(num_cores=1), "cores", "note", "1 of 8", "two cores"),
        (of_compute(quota_cores=1.5), "cores", "note", "CPU time of 1.5", "two cores"),
        (of_compute(num_numa_nodes=2), "numa", "note", "2 nodes", "--cores"),
        (of_compute(clock="hpet"), "clock", "note", "hpet", "clocksource=tsc"),
        (of_compute(num_open_files=1024), "open-files", "note", "1024", "4096"),
        (
            of_compute(native_error="no C compiler found"),
            *("native-copy", "warn", "no C compiler", "Install a C compiler"),
        ),
        (
            of_compute(native_error="cannot load x.so: read-only"),
            *("native-copy", "warn", "read-only", "XDG_CACHE_HOME"),
        ),
        (of_gpu(GpuFacts(error="no library")), "gpu", "note", "no library", "unless"),
        (
            of_gpu(GpuFacts(error="no library", driver_there=True)),
            *("gpu", "warn", "this process no GPU", "nvidia.com/gpu"),
        ),
        (
            of_gpu(replace(GPUS, no_peer=((0, 1),))),
            *("gpu-peer-access", "warn", "0 from 1", "topo -p2p"),
        ),
        (of_gpu(replace(GPUS, nccl="")), "nccl", "warn", "not found", "torch built for CUDA"),
        (of_network(loopback_mtu=1500), "loopback", "note", "MTU 1500", "mtu 65536"),
        (of_network(loopback_mtu=None), "loopback", "note", "not found", "lo up"),
        (of_network(send_buffer_bytes=1 << 18), "tcp-buffers", "note", "256 KiB", "tcp_wmem"),
        (of_network(rdma=()), "rdma", "note", "no device", "driver"),
        (of_network(rdma_openable=False), "rdma", "warn", "not open", "device plugin"),
        (of_network(rdma=(replace(NIC, active=False),)), "rdma", "warn", "down", "subnet manager"),
        (of_network(ucx=""), "ucx", "note", "not installed", "baton[ucx]"),
    ],
)
def test_each_shortcoming_is_found_with_its_remedy(
    facts: Facts, name: str, severity: str, says: str, remedy: str
) -> None:
    finding = named(name, every(facts))
    assert finding.severity == severity
    assert says in finding.value
    assert remedy in finding.remedy
    assert [one.name for one in every(facts) if one.severity != "ok"] == [name]


def test_ipc_lock_that_does_nothing_for_a_plain_user_is_named() -> None:
    inert = of_memory(memlock_bytes=8 << 20, ipc_lock_granted=True)
    finding = named("memlock", check_memory(inert))
    assert finding.severity == "warn"
    assert "does nothing for user 1000" in finding.value
    assert "IPC_LOCK needs user 0" in finding.remedy
    effective = of_memory(memlock_bytes=8 << 20, ipc_lock_granted=True, ipc_lock_held=True)
    assert named("memlock", check_memory(effective)).severity == "ok"


def test_a_memlock_limit_is_no_warning_where_nothing_would_be_pinned() -> None:
    plain = replace(of_memory(memlock_bytes=8 << 20), network=replace(NETWORK, rdma=()))
    assert named("memlock", check_memory(plain)).severity == "note"


def test_two_hosts_with_all_they_need_have_nothing_to_remedy() -> None:
    found = check_pair(BEST, OTHER, mtu=9000)
    assert {one.severity for one in found} == {"ok"}


@pytest.mark.parametrize(
    ("there", "mtu", "name", "severity", "says", "remedy"),
    [
        (replace(OTHER, version="0.2.0"), 9000, "versions", "warn", "0.2.0", "one version"),
        (OTHER, 1500, "path-mtu", "note", "1500", "jumbo"),
        (
            replace(OTHER, network=replace(NETWORK, rdma=())),
            *(9000, "rdma-pair", "note", "no RDMA device on two", "one fabric"),
        ),
        (
            replace(BEST, host="pod", network_namespace="net:[2]"),
            *(65_536, "place", "note", "another network namespace", "hostNetwork: true"),
        ),
        (replace(BEST, user=0), 65_536, "place", "note", "user 0 there", "one user"),
    ],
)
def test_each_shortcoming_of_a_pair_is_found_with_its_remedy(
    there: Facts, mtu: int, name: str, severity: str, says: str, remedy: str
) -> None:
    found = check_pair(BEST, there, mtu=mtu)
    finding = named(name, found)
    assert (finding.severity, says in finding.value) == (severity, True)
    assert remedy in finding.remedy
    assert [one.name for one in found if one.severity != "ok"] == [name]


def test_the_best_plane_that_moved_blocks_is_chosen_and_the_others_say_why_not() -> None:
    bare = replace(BEST, gpu=GpuFacts(error="none"), network=replace(NETWORK, ucx=""))
    way = plane_reports(bare, bare, [TCP, SHM])
    assert best_plane(way) == way[2]
    assert [(plane.name, plane.state) for plane in way] == [
        ("cuda_ipc", "no"),
        ("nccl", "no"),
        ("shm", "measured"),
        ("ucx", "no"),
        ("tcp", "measured"),
    ]
    assert [plane.why for plane in way if plane.state == "no"] == [
        "no GPU on one",
        "no GPU on one",
        "ucxx is not installed on one",
    ]


def test_a_plane_that_this_version_does_not_have_is_not_promised() -> None:
    old = replace(BEST, transports=("shm", "tcp"))
    way = {plane.name: plane for plane in plane_reports(old, old, [SHM, TCP])}
    assert way["cuda_ipc"].why == way["nccl"].why == "not in this version of Baton"
    now = {plane.name: plane for plane in plane_reports(BEST, BEST, [SHM, TCP])}
    assert (now["cuda_ipc"].state, now["cuda_ipc"].why) == (
        "possible",
        "for pools on a GPU; not measured",
    )


def test_between_hosts_nothing_shares_memory() -> None:
    way = {plane.name: plane for plane in plane_reports(BEST, OTHER, [TCP])}
    assert (way["shm"].why, way["cuda_ipc"].why) == ("another host", "another host")
    assert best_plane(way.values()) == way["tcp"]


def test_when_nothing_moved_nothing_is_chosen_and_each_failure_has_its_remedy() -> None:
    broken = [Unusable(transport="shm", why="denied"), Unusable(transport="tcp", why="timed out")]
    assert best_plane(plane_reports(BEST, BEST, broken)) is None
    found = plane_findings(broken, where="here")
    assert [one.severity for one in found] == ["warn", "warn"]
    assert "one network namespace" in named("shm-here", found).remedy
    assert "NetworkPolicy" in named("tcp-here", found).remedy


def test_sizes_are_said_in_the_largest_unit_that_fits() -> None:
    assert [size(n) for n in (12, 1 << 10, 3 << 19, 5 << 30)] == [
        "12 bytes",
        "1 KiB",
        "1.5 MiB",
        "5 GiB",
    ]


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([7.0], 0.99) == 7.0


def test_only_what_nothing_is_known_to_be_in_the_way_of_is_tried() -> None:
    assert measurable(BEST, BEST) == HOST_TRANSPORTS
    assert measurable(BEST, OTHER) == tuple(n for n in HOST_TRANSPORTS if n != "shm")
    without = replace(BEST, network=replace(NETWORK, ucx=""))
    assert measurable(without, BEST) == ("shm", "tcp")
    plain = replace(BEST, network=replace(NETWORK, rdma=()))
    assert measurable(BEST, plain) == ("shm", "tcp")
    forced = replace(BEST, network=replace(NETWORK, rdma=(), ucx_forced=True))
    assert measurable(forced, forced) == ("shm", "ucx", "tcp")
