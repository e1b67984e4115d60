"""How fast this engine computes, measured step by step and smoothed.

Fed by `engine.loop`; the figures travel to the router, which prices its choices in seconds.
"""

DECAY = 0.9
"""Weight of the past after one more step: a change of load shows within some twenty steps."""


class Speedometer:
    """Rates are sums over sums, so that a step of many tokens weighs more than one of few."""

    def __init__(self) -> None:
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0
        self._decode_step_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """0 until measured."""
        return self._prefill_tokens / self._prefill_s if self._prefill_s else 0.0

    @property
    def decode_step_s(self) -> float:
        """Seconds of a step without prefill; 0 until measured."""
        return self._decode_step_s

    def measure(self, *, num_prefill_tokens: int, num_decodes: int, step_s: float) -> None:
        """One step. A mixed one counts as prefill with all its tokens when most are prefill."""
        if num_prefill_tokens > num_decodes:
            self._prefill_tokens = DECAY * self._prefill_tokens + num_prefill_tokens + num_decodes
            self._prefill_s = DECAY * self._prefill_s + step_s
        elif num_prefill_tokens == 0 and num_decodes:
            past = self._decode_step_s or step_s
            self._decode_step_s = DECAY * past + (1 - DECAY) * step_s
