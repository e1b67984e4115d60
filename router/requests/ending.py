"""How a request ends well, and who knows that its last token was the last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.messages import FinishReason, Sampling


@dataclass(frozen=True, slots=True)
class EndWell:
    reason: FinishReason
    stopped_by: int | str | None = None
    """As of `protocol.messages.Finished`."""


AlreadyEnded = Callable[[Sampling, Sequence[int]], EndWell | None]
"""Whether these output tokens already end the request: its last worker may have died between
the last token and the message that it was the last."""


def ended_by_length(sampling: Sampling, outputs: Sequence[int]) -> EndWell | None:
    """All that can be known without the model's text."""
    return EndWell("length") if len(outputs) >= sampling.max_tokens else None
