"""What a step takes, as a function of what is in it: a robust regression, learnt step by step.

Least squares of relative errors, because a step of 2 ms is to be foretold as well as one of 200,
with Huber's weights (Huber 1964), because now and then a process is stopped in the middle of one.
No coefficient is ever negative. Steps with prompt tokens and steps without are forgotten apart:
an hour of decoding does not make the engine forget what a prompt costs. What the steps of late do
not tell, the calibration does, at the pace of late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from protocol.messages import StepModel

Floats = NDArray[np.float64]

SCALES = (1.0, 256.0, 131_072.0, 16.0)
"""Of the four amounts, so that the equations are of one size."""
MEMORY = 0.98
"""Weight of the past after one more step of its kind: fifty steps are remembered."""
UNLIKE, UNLIKE_MEMORY = 0.4, 0.9
"""A usual error beyond the first: the past is no guide any more, and is forgotten sooner."""
CALIBRATION_WEIGHT = 0.25
"""Of a calibrated step beside one that was served: some five per cent of what is remembered."""
REFIT_STEPS = 32
"""A fit takes 0.2 ms, and so 1 % of steps of 1 ms."""
LEAST_STEPS = 8
"""Of each kind that a fit needs where nothing was calibrated."""
TOLERANCE = 3.0
"""An error of so many usual ones counts in full; a larger one counts as if it were no larger."""
STRIDE = 1.1
"""By which a usual error is corrected a step: three times slower for good is believed in some
forty steps, one stopped step moves it by a tenth."""
PACE_STRIDE = 1.02
_LEAST_S = 1e-6
_SUBSETS = [list(some) for size in range(4, 0, -1) for some in combinations(range(4), size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """A step and its seconds; the amounts as of `protocol.messages.StepModel`."""

    num_tokens: int
    """Of prompts."""
    num_attended: int
    num_decodes: int
    step_s: float


def predicted_s(model: StepModel, step: MeasuredStep) -> float:
    """Seconds that `step` would take."""
    return (
        model.fixed_s
        + model.token_s * step.num_tokens
        + model.attended_s * step.num_attended
        + model.sequence_s * step.num_decodes
    )


class StepFit:
    """Not thread-safe; `model` may be read from any thread."""

    def __init__(self) -> None:
        self.model = StepModel()
        """All zero until calibrated, or until steps of both kinds were measured."""
        self._calibrated: list[MeasuredStep] = []
        self._calibrated_model = StepModel()
        self._pace = 1.0
        """What steps take of late, over what the calibration would have them take."""
        self._with_prompt, self._without = _Equations(), _Equations()
        self._num_unfitted = 0

    def calibrate(self, steps: Sequence[MeasuredStep]) -> None:
        """Start from these; they are never forgotten, only outweighed."""
        self._calibrated = list(steps)
        self._pace = 1.0
        self._fit()
        self._calibrated_model = self.model

    def add_step(self, step: MeasuredStep) -> None:
        """One more that was served."""
        if step.step_s <= 0:
            return
        expected_s = self._pace * predicted_s(self._calibrated_model, step)
        if expected_s > 0:
            self._pace *= PACE_STRIDE if step.step_s > expected_s else 1 / PACE_STRIDE
        kind = self._with_prompt if step.num_tokens else self._without
        kind.add_step(step, expected_s=predicted_s(self.model, step))
        self._num_unfitted += 1
        if self._num_unfitted >= REFIT_STEPS:
            self._fit()

    def _fit(self) -> None:
        self._num_unfitted = 0
        known = [step.num_tokens > 0 for step in self._calibrated]
        if not any(known) and self._with_prompt.num_steps < LEAST_STEPS:
            return
        if not known and self._without.num_steps < LEAST_STEPS:
            return
        sums = self._with_prompt.sums + self._without.sums
        for step in self._calibrated:
            step_s = max(_LEAST_S, step.step_s * self._pace)
            row = _row(step, step_s=step_s)
            sums += CALIBRATION_WEIGHT / step_s**2 * np.outer(row, row)
        coefficients = least_squares(sums[:4, :4], sums[:4, 4]) / SCALES
        self.model = StepModel(*(float(value) for value in coefficients))


class _Equations:
    """The weighted sums of one kind of steps, and how far off they usually are."""

    def __init__(self) -> None:
        self.sums: Floats = np.zeros((5, 5))
        """Of products of amounts, the seconds last: the normal equations and their right side."""
        self.num_steps = 0
        self._usual_error = 0.2
        """Median of the relative errors."""

    def add_step(self, step: MeasuredStep, *, expected_s: float) -> None:
        """`expected_s` 0: nothing was."""
        weight = 1.0
        if expected_s > 0:
            error = abs(step.step_s / expected_s - 1)
            limit = TOLERANCE * self._usual_error
            weight = 1.0 if error <= limit else limit / error
            stride = STRIDE if error > self._usual_error else 1 / STRIDE
            self._usual_error = min(10.0, max(0.01, self._usual_error * stride))
        row = _row(step, step_s=step.step_s)
        self.sums *= MEMORY if self._usual_error < UNLIKE else UNLIKE_MEMORY
        self.sums += weight / max(_LEAST_S, expected_s or step.step_s) ** 2 * np.outer(row, row)
        self.num_steps += 1


def _row(step: MeasuredStep, *, step_s: float) -> Floats:
    """[5], the amounts scaled, then the seconds."""
    _, tokens, attended, decodes = SCALES
    scaled = (step.num_tokens / tokens, step.num_attended / attended, step.num_decodes / decodes)
    return np.array((1.0, *scaled, step_s))


def least_squares(normal: Floats, moments: Floats) -> Floats:
    """The non-negative solution of `normal @ x = moments` in the sense of least squares, [4]: of
    all sets of coefficients that may differ from 0 the one with the least error, and of those that
    are as good the smallest."""
    ridge = 1e-9 * np.trace(normal) * np.eye(4)
    best, least = np.zeros(4), 0.0
    for some in _SUBSETS:
        part = np.linalg.solve((normal + ridge)[np.ix_(some, some)], moments[some])
        if (part < 0).any():
            continue
        error = float(part @ normal[np.ix_(some, some)] @ part - 2 * part @ moments[some])
        if error <= least * (1 + 1e-9):
            best, least = np.zeros(4), error
            best[some] = part
    return best
