from pathlib import Path

import pytest

from controlplane.local.settings import UpSettings
from controlplane.local.specs import threads_per_worker, worker_specs
from protocol.process.machine import cores_within, parse_quota
from protocol.store.address import RedisAddress

REDIS = RedisAddress(url="unix:///r")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_a_containers_quota_bounds_the_cores(quota: str, cores: int) -> None:
    assert cores_within(parse_quota(quota), num_cores=8) == cores


def test_from_four_cores_on_one_is_left_to_the_router_and_redis() -> None:
    assert threads_per_worker(num_cores=4, num_workers=1) == 3
    assert threads_per_worker(num_cores=9, num_workers=2) == 4


def test_workers_share_the_cores_evenly_and_get_at_least_one_thread() -> None:
    assert threads_per_worker(num_cores=8, num_workers=3) == 2
    assert threads_per_worker(num_cores=3, num_workers=2) == 1
    assert threads_per_worker(num_cores=2, num_workers=4) == 1


def test_pinned_workers_take_cores_by_turns() -> None:
    settings = UpSettings.model_validate({"model": Path("model"), "decode": 2, "pin": True})
    specs = worker_specs(settings, redis=REDIS, cores=(4, 6), metrics_ports=(1, 2, 3), env={})
    cores = [spec.command[spec.command.index("--cores") + 1] for spec in specs]
    assert cores == ["4", "6", "4"]
