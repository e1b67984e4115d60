"""How fast this engine computes, measured step by step and smoothed.

The figures travel to the router, which prices its choices in seconds.
"""

DECAY = 0.9
"""Weight of the past after one more step: a change of load shows within some twenty steps."""
MIN_PREFILL_TOKENS = 64
"""Of a step that tells the rate of prefill. A shorter one costs about what a decode step costs,
whatever its length: taken for a rate it would make long prompts look many times too slow."""


class Rate:
    """A sum over a sum, so that a large measurement weighs more than a small one. One thread
    adds, any may read."""

    def __init__(self) -> None:
        self.per_s = 0.0
        """0 until measured."""
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, *, seconds: float) -> None:
        if seconds <= 0:
            return
        self._amount = DECAY * self._amount + amount
        self._seconds = DECAY * self._seconds + seconds
        self.per_s = self._amount / self._seconds


class Speedometer:
    def __init__(self) -> None:
        self.prefill = Rate()
        """Tokens of long prompts."""
        self.decode_step_s = 0.0
        """Seconds of a step without prefill; 0 until measured."""

    def measure(self, *, num_prefill_tokens: int, num_decodes: int, step_s: float) -> None:
        """One step. A mixed one counts as prefill with all its tokens when most are prefill."""
        if num_prefill_tokens >= max(MIN_PREFILL_TOKENS, num_decodes + 1):
            self.prefill.add(num_prefill_tokens + num_decodes, seconds=step_s)
        elif num_prefill_tokens == 0 and num_decodes:
            past = self.decode_step_s or step_s
            self.decode_step_s = DECAY * past + (1 - DECAY) * step_s
