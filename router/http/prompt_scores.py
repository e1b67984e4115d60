"""The tokens of a prompt in an answer: before the generated ones, or in vLLM's `prompt_logprobs`.

The first has no probability: nothing comes before it.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from protocol.messages import TokenLogprob
from protocol.readings import TokenScore
from protocol.text.tokenizer import Tokenizer
from router.http.logprobs import FLOOR, Entry, TextLogprobs
from router.requests.events import Scored, Token


def echoed_entries(logprobs: TextLogprobs, scored: Scored, *, num_top: int) -> list[Entry]:
    """Of `TextLogprobs.join`. To be called for each `Scored`, in order."""
    return [logprobs.entry(_as_token(score, num_top)) for score in scored.scores]


class ListedScores:
    """Of one choice: null, then of each token `{id: {logprob, rank, decoded_token}}`."""

    def __init__(self, tokenizer: Tokenizer, *, num_top: int) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self.entries: list[Any] = [None]

    def add(self, scored: Scored) -> None:
        """As bytes: an answer's entries wait in a third of the memory that objects take."""
        for score in scored.scores:
            self.entries.append(msgspec.Raw(msgspec.json.encode(dict(self._shown(score)))))

    def _shown(self, score: TokenScore) -> Iterator[tuple[str, Entry]]:
        yield self._one(score.token_id, score.logprob, score.rank)
        for place, (token_id, logprob) in enumerate(score.top[: self._num_top]):
            if token_id != score.token_id:
                yield self._one(token_id, logprob, place + 1)

    def _one(self, token_id: int, logprob: float, rank: int) -> tuple[str, Entry]:
        text = self._tokenizer.token_text(token_id)
        shown = {"logprob": max(FLOOR, logprob), "rank": rank, "decoded_token": text}
        return str(token_id), shown


def _as_token(score: TokenScore, num_top: int) -> Token:
    top = (TokenLogprob(token_id=id_, logprob=value) for id_, value in score.top[:num_top])
    return Token(index=0, token_id=score.token_id, text="", logprob=score.logprob, top=tuple(top))
