"""From a setting to a device, or to a refusal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.runner.gpu.opening import open_device
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
    assert open_device("auto") == 0
    assert not narrow_sums.allow_bf16_reduced_precision_reduction
    assert not narrow_sums.allow_fp16_reduced_precision_reduction


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA"])
def test_a_device_of_no_known_kind_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        WorkerSettings(model=Path("m"), device=device)
