"""From a setting to a device, or to a refusal."""

from pathlib import Path

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


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA"])
def test_a_device_of_no_known_kind_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        WorkerSettings(model=Path("m"), device=device)
