"""Whether output tokens already end their request: the workers' own rule, asked again."""

from collections.abc import Sequence

from protocol.messages import FinishReason, Sampling
from protocol.text.tokenizer import TextState, Tokenizer


def already_ended(
    tokenizer: Tokenizer, sampling: Sampling, outputs: Sequence[int]
) -> FinishReason | None:
    """Why the last of all `outputs` so far ends the request; None if it does not."""
    if not outputs:
        return None
    text = TextState(tokenizer, sampling)
    steps = [text.feed(token_id) for token_id in outputs]
    if steps[-1].stopped:
        return "stop"
    ending_ids = sampling.ending_ids(tokenizer.eos_token_ids)
    return sampling.reason_to_end(outputs[-1], len(outputs), ending_ids)
