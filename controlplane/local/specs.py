"""The command lines of one machine's processes, and which worker gets which cores. Pure."""

import sys
from collections.abc import Mapping, Sequence

from controlplane.local.child import ChildSpec
from controlplane.local.settings import PoolSettings, UpSettings
from protocol.store.address import RedisAddress

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GPU_SHARE_VARIABLE = "BATON_KV_MEMORY_SHARE"
GPU_SHARE = 0.9
"""Of all workers together, as the default of one alone (`protocol.process.settings`)."""
OURS_ALONE = frozenset({"BATON_CONFIG"})
"""The supervisor's file: it has told each child what concerns it."""


def worker_names(settings: PoolSettings) -> list[str]:
    prefill = [f"prefill-{index}" for index in range(settings.prefill)]
    return prefill + [f"decode-{index}" for index in range(settings.decode)]


def gpu_share(settings: PoolSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """What each worker may take of a GPU's free memory, should they share one: all measure at the
    same time. Nothing where the environment says it."""
    return share_of_gpu(len(worker_names(settings)), environment)


def share_of_gpu(num_workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """As `gpu_share`, of so many workers on one GPU."""
    if GPU_SHARE_VARIABLE in environment:
        return {}
    return {GPU_SHARE_VARIABLE: f"{GPU_SHARE / max(1, num_workers):.3f}"}


def threads_per_worker(*, num_cores: int, num_workers: int) -> int:
    """An equal share, at least 1: workers that crowd each other's cores slow all of them. From
    four cores on one is left to the router and Redis."""
    return max(1, (num_cores - (num_cores >= 4)) // num_workers)


def redis_env(address: RedisAddress) -> dict[str, str]:
    """Where others of the machine cannot read it, as they can a command line. Complete, so that
    nothing of another Redis is inherited."""
    return {
        "BATON_REDIS": address.url,
        "BATON_REDIS_USERNAME": address.username,
        "BATON_REDIS_PASSWORD": address.password,
        "BATON_REDIS_CA": address.ca,
        "BATON_REDIS_PREFIX": address.prefix,
    }


def worker_specs(
    settings: PoolSettings,
    *,
    redis: RedisAddress,
    cores: Sequence[int],
    metrics_ports: Sequence[int],
    env: Mapping[str, str],
    own_flags: Sequence[Mapping[str, str]] = (),
) -> list[ChildSpec]:
    """`own_flags`: of each worker, in place of those for all."""
    names = worker_names(settings)
    threads = settings.threads or threads_per_worker(num_cores=len(cores), num_workers=len(names))
    if settings.pin:
        threads = 1
    thread_env = {name: str(threads) for name in THREAD_VARIABLES}
    specs = []
    for index, name in enumerate(names):
        flags = {
            "model": str(settings.model),
            "worker": name,
            "dtype": settings.dtype,
            "host": settings.loopback,
            "port": "0",
            "metrics-port": str(metrics_ports[index]),
            "threads": str(threads),
            "drain-s": str(settings.drain_s),
            **({"served-name": settings.served_name} if settings.served_name else {}),
            **({"kv-blocks": str(settings.kv_blocks)} if settings.kv_blocks else {}),
            **({"cores": str(cores[index % len(cores)])} if settings.pin else {}),
            **(own_flags[index] if own_flags else {}),
        }
        module = "prefill_worker" if name.startswith("prefill") else "decode_worker"
        specs.append(_spec(name, module, flags, {**thread_env, **redis_env(redis), **env}))
    return specs


def router_spec(
    settings: UpSettings, *, redis: RedisAddress, port: int, env: Mapping[str, str]
) -> ChildSpec:
    flags = {
        "host": settings.host,
        "port": str(port),
        "processes": str(settings.router_processes),
        "linger-s": str(settings.linger_s),
        "drain-s": str(settings.drain_s),
    }
    return _spec("router", "router", flags, {**redis_env(redis), **env})


def _spec(name: str, module: str, flags: Mapping[str, str], env: Mapping[str, str]) -> ChildSpec:
    words = [word for key, value in flags.items() for word in (f"--{key}", value)]
    command = (sys.executable, "-m", module, *words)
    return ChildSpec(name=name, command=command, env=env, not_inherited=OURS_ALONE)
