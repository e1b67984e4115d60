"""Whether output tokens already end their request: the workers' own rule, asked again."""

from collections.abc import Sequence

from protocol.messages import Sampling
from protocol.text.tokenizer import TextState, Tokenizer
from router.requests.ending import EndWell


def already_ended(
    tokenizer: Tokenizer, sampling: Sampling, outputs: Sequence[int]
) -> EndWell | None:
    """How the last of all `outputs` so far ends the request; None if it does not."""
    if not outputs:
        return None
    text = TextState(tokenizer, sampling)
    steps = [text.feed(token_id) for token_id in outputs]
    if steps[-1].stopped:
        return EndWell("stop", text.stopped_by)
    return EndWell("length") if len(outputs) >= sampling.max_tokens else None
