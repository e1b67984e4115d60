import os
from pathlib import Path

import pytest

from protocol.errors import SettingsError
from protocol.process.machine import (
    check_device,
    claim_cores,
    free_memory_bytes,
    is_loopback,
    parse_cores,
    parse_quota,
    usable_cores,
)


def test_cores_are_numbers_and_ranges() -> None:
    assert parse_cores("0") == {0}
    assert parse_cores("0,2-4,7") == {0, 2, 3, 4, 7}


def test_cores_that_are_not_ours_are_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="cores: '4096'"):
        claim_cores(cores="4096", threads=1)


def test_threads_are_one_per_core_unless_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    claim_cores(cores="", threads=0)
    assert os.environ["OMP_NUM_THREADS"] == str(len(usable_cores()))
    claim_cores(cores="", threads=3)
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_compute_threads_sleep_soon_unless_the_operator_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {})
    claim_cores(cores="", threads=1)
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "active"})
    claim_cores(cores="", threads=1)
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in os.environ


def test_free_memory_is_less_than_the_machine_has() -> None:
    total_kb = int(Path("/proc/meminfo").read_text().split()[1])
    assert 0 < free_memory_bytes() <= total_kb * 1024


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_only_this_machine_reaches_its_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*", "10.0.0.1", "worker-3"])
def test_anything_else_is_open_to_others(host: str) -> None:
    assert not is_loopback(host)


def test_a_gpu_that_the_driver_does_not_show_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.process.machine.num_gpus", lambda: 2)
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        check_device(device)
    with pytest.raises(SettingsError, match=r"device: 'cuda:2': NVIDIA's driver shows 2 GPUs"):
        check_device("cuda:2")


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_a_cpu_quota_is_said_in_cores(cpu_max: str, cores: float | None) -> None:
    assert parse_quota(cpu_max) == cores
