"""Whether output tokens already end their request."""

from collections.abc import Sequence

from protocol.messages import FinishReason, Sampling
from protocol.text.tokenizer import TextState, Tokenizer


class Replay:
    """An `AlreadyEnded` with the rules of the workers: the same text state, fed again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, sampling: Sampling, outputs: Sequence[int]) -> FinishReason | None:
        if not outputs:
            return None
        text = TextState(self._tokenizer, sampling)
        steps = [text.feed(token_id) for token_id in outputs]
        if steps[-1].stopped:
            return "stop"
        return sampling.reason_to_end(outputs[-1], len(outputs), self._tokenizer.eos_token_ids)
