import pytest
from support.fake_runner import FakeRunner
from support.observed import RecordingObserver

from engine.limits import EngineLimits
from engine.loop import Engine


def test_windows_of_another_number_of_groups_than_the_layout_has_are_refused() -> None:
    with pytest.raises(ValueError, match="windows: of 1 KV groups, the layout has 2"):
        Engine(
            runner=FakeRunner(num_blocks=8, windows=(None, 3)),
            limits=EngineLimits(
                max_running=4, max_waiting=8, token_budget=8, max_context_tokens=96
            ),
            eos_token_ids=(),
            compat="test",
            generations=[0] * 8,
            observer=RecordingObserver(),
        )
