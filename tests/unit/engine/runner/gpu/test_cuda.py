"""A step that a device does not end is given up."""

import pytest

from engine.runner.contract import StepHung
from engine.runner.gpu.cuda import wait_until


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
