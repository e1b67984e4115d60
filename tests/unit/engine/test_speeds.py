import random

import pytest

from engine.speeds.speedometer import Speedometer
from engine.speeds.step_fit import MeasuredStep, StepFit, predicted_s
from protocol.messages import StepModel


def measured(*, num_prefill_tokens: int = 0, num_decodes: int = 0, step_s: float) -> MeasuredStep:
    return MeasuredStep(
        num_tokens=num_prefill_tokens, num_attended=0, num_decodes=num_decodes, step_s=step_s
    )


def test_nothing_is_claimed_before_it_is_measured() -> None:
    speeds = Speedometer()
    assert speeds.prefill.per_s == 0
    assert speeds.decode_step_s == 0
    assert speeds.step == StepModel()


def test_a_step_of_many_tokens_weighs_more_than_one_of_few() -> None:
    speeds = Speedometer()
    speeds.measure(measured(num_prefill_tokens=1000, step_s=1.0))
    speeds.measure(measured(num_prefill_tokens=100, step_s=0.2))
    assert speeds.prefill.per_s == pytest.approx(1000 / 1.1)


def test_short_prompts_do_not_make_long_ones_look_slow() -> None:
    """A step has a floor: ten tokens take as long as fifty."""
    speeds = Speedometer()
    for _ in range(100):
        speeds.measure(measured(num_prefill_tokens=10, step_s=0.02))
    assert speeds.prefill.per_s == 0
    speeds.measure(measured(num_prefill_tokens=1000, step_s=0.25))
    for _ in range(100):
        speeds.measure(measured(num_prefill_tokens=10, step_s=0.02))
    assert speeds.prefill.per_s == pytest.approx(4000)


def test_a_mixed_step_counts_as_prefill_and_not_as_decode() -> None:
    speeds = Speedometer()
    speeds.measure(measured(num_prefill_tokens=90, num_decodes=10, step_s=1.0))
    assert speeds.prefill.per_s == 100
    assert speeds.decode_step_s == 0


def test_decode_steps_follow_a_change_of_load() -> None:
    speeds = Speedometer()
    for _ in range(100):
        speeds.measure(measured(num_decodes=8, step_s=0.02))
    for _ in range(30):
        speeds.measure(measured(num_decodes=8, step_s=0.04))
    assert speeds.decode_step_s == pytest.approx(0.04, rel=0.05)


TRUE = StepModel(fixed_s=0.004, token_s=80e-6, attended_s=20e-9, sequence_s=300e-6)


class Steps:
    """Steps of an engine that takes as long as `model` says, give or take some per cent."""

    def __init__(self, model: StepModel = TRUE, *, noise: float = 0.05, seed: int = 1) -> None:
        self.model = model
        self._noise = noise
        self._random = random.Random(seed)

    def chunk(self, length: int = 0, start: int | None = None) -> MeasuredStep:
        length = length or self._random.randint(16, 512)
        start = self._random.randint(0, 8000) if start is None else start
        attended = length * start + length * (length + 1) // 2
        return self._taken(num_tokens=length, num_attended=attended)

    def decode(self, batch: int = 0, context: int = 0) -> MeasuredStep:
        batch = batch or self._random.randint(1, 32)
        context = context or self._random.randint(16, 4000)
        return self._taken(num_attended=batch * (context + 1), num_decodes=batch)

    def any(self) -> MeasuredStep:
        return self.chunk() if self._random.random() < 0.3 else self.decode()

    def _taken(
        self, *, num_attended: int, num_tokens: int = 0, num_decodes: int = 0
    ) -> MeasuredStep:
        step = MeasuredStep(
            num_tokens=num_tokens, num_attended=num_attended, num_decodes=num_decodes, step_s=0.0
        )
        step_s = predicted_s(self.model, step) * (1 + self._random.gauss(0, self._noise))
        return MeasuredStep(
            num_tokens=num_tokens, num_attended=num_attended, num_decodes=num_decodes,
            step_s=step_s,
        )  # fmt: skip


def worst_error(fit: StepFit, model: StepModel = TRUE) -> float:
    """Of steps of both kinds that it has not seen, relative."""
    exact = Steps(model, noise=0.0, seed=99)
    held_out = [exact.any() for _ in range(200)]
    return max(abs(predicted_s(fit.model, step) / step.step_s - 1) for step in held_out)


def learnt(fit: StepFit, steps: Steps, *, num: int) -> StepFit:
    for _ in range(num):
        fit.add_step(steps.any())
    return fit


def calibrated() -> StepFit:
    fit, steps = StepFit(), Steps()
    batches = [steps.decode(1, 16), steps.decode(8, 16), steps.decode(8, 1024)]
    fit.calibrate([*batches, steps.chunk(32, 0), steps.chunk(512, 0), steps.chunk(512, 1024)])
    return fit


def test_steps_are_foretold_once_both_kinds_were_served() -> None:
    assert worst_error(learnt(StepFit(), Steps(), num=400)) < 0.08


def test_without_a_prompt_served_or_calibrated_nothing_is_said_of_prompts() -> None:
    """Or a prompt would look as if it cost nothing."""
    fit, steps = StepFit(), Steps()
    fit.calibrate([steps.decode(1, 16), steps.decode(8, 16)])
    for _ in range(200):
        fit.add_step(steps.decode())
    assert fit.model == StepModel()


def test_a_calibration_of_six_steps_is_a_start() -> None:
    assert worst_error(calibrated()) < 0.5


def test_a_process_that_is_stopped_now_and_then_teaches_nothing_wrong() -> None:
    fit, steps = learnt(calibrated(), Steps(), num=400), Steps(seed=3)
    for index in range(400):
        step = steps.any()
        if index % 20 == 0:  # for a second
            more_s = step.step_s + 1.0
            step = MeasuredStep(
                num_tokens=step.num_tokens, num_attended=step.num_attended,
                num_decodes=step.num_decodes, step_s=more_s,
            )  # fmt: skip
        fit.add_step(step)
    assert worst_error(fit) < 0.15


def test_an_engine_that_became_three_times_slower_is_believed() -> None:
    fit = learnt(calibrated(), Steps(), num=500)
    slow = StepModel(fixed_s=0.012, token_s=240e-6, attended_s=60e-9, sequence_s=900e-6)
    learnt(fit, Steps(slow, seed=4), num=600)
    assert worst_error(fit, slow) < 0.15


def test_long_decoding_alone_does_not_make_it_forget_what_prompts_cost() -> None:
    fit, steps = learnt(calibrated(), Steps(), num=400), Steps(seed=5)
    for _ in range(5000):
        fit.add_step(steps.decode(8, 500))
    assert worst_error(fit) < 0.2


def test_prompts_that_were_never_served_follow_the_pace_of_the_steps_that_were() -> None:
    """Calibrated when nobody else was on the machine."""
    fit = calibrated()
    slow = StepModel(fixed_s=0.012, token_s=240e-6, attended_s=60e-9, sequence_s=900e-6)
    steps = Steps(slow, seed=6)
    for _ in range(600):
        fit.add_step(steps.decode())
    prompt = Steps(slow, noise=0.0).chunk(512, 0)
    assert predicted_s(fit.model, prompt) == pytest.approx(prompt.step_s, rel=0.35)


def test_no_coefficient_is_negative_whatever_is_measured() -> None:
    fit, chance = StepFit(), random.Random(7)
    for _ in range(300):
        fit.add_step(
            MeasuredStep(
                num_tokens=chance.choice((0, chance.randint(1, 512))),
                num_attended=chance.randint(1, 10**6),
                num_decodes=chance.randint(0, 64),
                step_s=chance.expovariate(100),
            )
        )
    model = fit.model
    assert min(model.fixed_s, model.token_s, model.attended_s, model.sequence_s) >= 0
    assert model != StepModel()
