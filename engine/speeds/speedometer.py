"""How fast this engine computes, measured step by step and smoothed.

The figures travel to the router, which prices its choices in seconds.
"""

from collections.abc import Sequence

from engine.speeds.rate import DECAY, Rate
from engine.speeds.step_fit import MeasuredStep, StepFit
from protocol.messages import StepModel

MIN_PREFILL_TOKENS = 64
"""Of a step that tells the rate of prefill. A shorter one costs about what a decode step costs,
whatever its length: taken for a rate it would make long prompts look many times too slow."""


class Speedometer:
    def __init__(self) -> None:
        self.prefill = Rate()
        """Tokens of long prompts."""
        self.decode_step_s = 0.0
        """Seconds of a step without prefill; 0 until measured."""
        self._fit = StepFit()

    @property
    def step(self) -> StepModel:
        """All zero until known."""
        return self._fit.model

    def calibrate(self, steps: Sequence[MeasuredStep]) -> None:
        """Steps that were computed to be measured: a start for what requests will teach."""
        self._fit.calibrate(steps)

    def measure(self, step: MeasuredStep) -> None:
        """One step. A mixed one counts as prefill with all its tokens when most are prefill."""
        num_prompt, num_decodes = step.num_tokens, step.num_decodes
        if num_prompt >= max(MIN_PREFILL_TOKENS, num_decodes + 1):
            self.prefill.add(num_prompt + num_decodes, seconds=step.step_s)
        elif num_prompt == 0 and num_decodes:
            past = self.decode_step_s or step.step_s
            self.decode_step_s = DECAY * past + (1 - DECAY) * step.step_s
        self._fit.add_step(step)
