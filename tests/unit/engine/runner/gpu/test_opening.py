"""From a setting to a device, or to a refusal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.runner.gpu import opening
from engine.runner.gpu.opening import open_device, remedy
from protocol.errors import SettingsError
from protocol.process.settings import WorkerSettings


def test_a_gpu_that_torch_does_not_see_is_refused_with_field_value_and_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device("auto") is None and open_device("cpu") is None
    with pytest.raises(SettingsError, match=r"device: 'cuda': torch .* sees 0 GPUs here; use auto"):
        open_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"device: 'cuda:2': .* sees 2 GPUs"):
        open_device("cuda:2")


@pytest.mark.parametrize(
    ("built", "driver", "told"),
    [
        (None, (12, 4), "a torch with CUDA (the worker-cuda image)"),
        ("13.0", None, "no driver here: use auto or cpu, or give this container a GPU"),
        ("13.0", (12, 4), "speaks CUDA 12.4 at most, this torch is built for 13.0: update the "
         "driver to 580 or later, or install a torch built for CUDA 12"),
        ("12.6", (11, 8), "update the driver to 525 or later"),
        ("14.1", (13, 0), "update the driver to one for CUDA 14"),
        ("13.0", (13, 2), "use auto or cpu"),
        ("12.8", (12, 2), "use auto or cpu"),  # any minor version of a major one runs
    ],
)  # fmt: skip
def test_what_keeps_torch_from_a_gpu_is_told_with_what_to_do(
    built: str | None, driver: tuple[int, int] | None, told: str
) -> None:
    assert told in remedy(built=built, driver=driver)


def test_a_gpu_that_is_there_and_not_used_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(opening, "driver_cuda", lambda: None)
    assert open_device("auto") is None
    assert not caplog.records, "a machine without a driver has no GPU"
    monkeypatch.setattr(opening, "driver_cuda", lambda: (12, 4))
    assert open_device("auto") is None
    (record,) = caplog.records
    assert "the CPU computes" in record.message
    assert "580 or later" in record.__dict__["remedy"]
    with pytest.raises(SettingsError, match="580 or later"):
        open_device("cuda")


@pytest.fixture
def narrow_sums() -> Iterator[Any]:
    """torch's switches of cuBLAS, as torch has them at first; its own words, so no monkeypatch."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_bf16_reduced_precision_reduction = True
    matmul.allow_fp16_reduced_precision_reduction = True
    yield matmul
    matmul.allow_bf16_reduced_precision_reduction = True
    matmul.allow_fp16_reduced_precision_reduction = True


def test_partial_sums_of_a_linear_are_float32_once_a_gpu_is_opened(
    narrow_sums: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("engine.runner.gpu.cuda.CudaDevice", lambda index: index)
    opened: object = open_device("auto")
    assert opened == 0
    assert not narrow_sums.allow_bf16_reduced_precision_reduction
    assert not narrow_sums.allow_fp16_reduced_precision_reduction


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA"])
def test_a_device_of_no_known_kind_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        WorkerSettings(model=Path("m"), device=device)
