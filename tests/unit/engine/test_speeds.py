import pytest

from engine.speeds import Speedometer


def test_nothing_is_claimed_before_it_is_measured() -> None:
    speeds = Speedometer()
    assert speeds.prefill.per_s == 0
    assert speeds.decode_step_s == 0


def test_a_step_of_many_tokens_weighs_more_than_one_of_few() -> None:
    speeds = Speedometer()
    speeds.measure(num_prefill_tokens=1000, num_decodes=0, step_s=1.0)
    speeds.measure(num_prefill_tokens=100, num_decodes=0, step_s=0.2)
    assert speeds.prefill.per_s == pytest.approx(1000 / 1.1)


def test_short_prompts_do_not_make_long_ones_look_slow() -> None:
    """A step has a floor: ten tokens take as long as fifty."""
    speeds = Speedometer()
    for _ in range(100):
        speeds.measure(num_prefill_tokens=10, num_decodes=0, step_s=0.02)
    assert speeds.prefill.per_s == 0
    speeds.measure(num_prefill_tokens=1000, num_decodes=0, step_s=0.25)
    for _ in range(100):
        speeds.measure(num_prefill_tokens=10, num_decodes=0, step_s=0.02)
    assert speeds.prefill.per_s == pytest.approx(4000)


def test_a_mixed_step_counts_as_prefill_and_not_as_decode() -> None:
    speeds = Speedometer()
    speeds.measure(num_prefill_tokens=90, num_decodes=10, step_s=1.0)
    assert speeds.prefill.per_s == 100
    assert speeds.decode_step_s == 0


def test_decode_steps_follow_a_change_of_load() -> None:
    speeds = Speedometer()
    for _ in range(100):
        speeds.measure(num_prefill_tokens=0, num_decodes=8, step_s=0.02)
    for _ in range(30):
        speeds.measure(num_prefill_tokens=0, num_decodes=8, step_s=0.04)
    assert speeds.decode_step_s == pytest.approx(0.04, rel=0.05)
