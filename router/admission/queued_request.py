"""One request that waits for a worker, as the queue sees it."""

from dataclasses import dataclass

RESUMED_BAND = -(1 << 40)
"""Of requests that had a worker and lost it: before everybody, and never sent away."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueuedRequest:
    """Equal to itself alone."""

    tenant: str
    weight: float
    """Of its tenant: twice the weight, twice the tokens where all want more than there are."""
    band: int
    """Its priority. Nobody has a turn while somebody of a lower number waits."""
    num_prompt_tokens: int
    num_output_tokens: int
    """That are likely to come."""
    ends_at: float
    """Its own deadline: a turn that comes later is of no use."""

    @property
    def num_tokens(self) -> int:
        """What it is expected to cost."""
        return self.num_prompt_tokens + self.num_output_tokens
