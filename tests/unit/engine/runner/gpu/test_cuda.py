"""A step that a device does not end is given up; steps go before whatever else the GPU does."""

from types import SimpleNamespace

import pytest
import torch

from engine.limits import DeviceSize
from engine.runner.contract import StepHung
from engine.runner.gpu.cuda import CudaDevice, wait_until


def test_a_step_that_never_ends_is_given_up() -> None:
    with pytest.raises(StepHung, match=r"has not ended its step in 0\.005 s"):
        wait_until(lambda: False, patience_s=0.005)


def test_a_step_is_asked_after_until_it_has_ended_or_failed() -> None:
    answers = iter([False, False, True])
    wait_until(lambda: next(answers))
    assert next(answers, None) is None

    def failed() -> bool:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        wait_until(failed)


def test_the_stream_of_steps_is_of_the_pool_of_high_priority_which_no_copy_takes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, int]] = []
    chip = SimpleNamespace(
        name="H200", total_memory=139 << 30, multi_processor_count=132, uuid="55-aa"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: chip)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", lambda **given: made.append(given))
    device = CudaDevice(3)
    assert made == [{"device": 3, "priority": -1}]
    assert (device.name, device.key) == ("cuda:3 H200", "gpu 55-aa")
    assert device.size == DeviceSize(memory_bytes=139 << 30, num_multiprocessors=132)
