"""The tokens of all answers: a corpus's, from a place that each request names as its seed."""

from bench.router_sim.checkpoint import corpus
from protocol.messages import Sampling
from protocol.text.tokenizer import TextState, Tokenizer


class Answers:
    """The tokens of all answers."""

    def __init__(self, tokenizer: Tokenizer, *, num_chars: int = 400_000) -> None:
        self._tokenizer = tokenizer
        self.token_ids = tokenizer.encode(corpus()[:num_chars], add_special_tokens=False)

    def token(self, seed: int, index: int) -> int:
        return self.token_ids[(seed + index) % len(self.token_ids)]

    def text(self, seed: int, num_tokens: int) -> str:
        """All of a request's answer."""
        state = TextState(self._tokenizer, Sampling(seed=seed, max_tokens=num_tokens))
        shown = [state.feed(self.token(seed, index)).text for index in range(num_tokens)]
        return "".join([*shown, state.flush()])
