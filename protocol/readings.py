"""What may be read of a prompt besides the tokens that follow it, and what is answered.

Part of `protocol.messages`. A row is what the model makes of one token: the logits of the token
after it, and under them its hidden state after the last norm.
"""

from typing import Annotated, Literal, assert_never

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
"""What a tokenizer can be asked about; checked where a message is unpacked."""

PoolingKind = Literal["last", "mean", "cls"]
"""Of which tokens the hidden states are averaged: the last, all, the first."""


class ScorePrompt(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """Say how likely the prompt's own tokens are, from one of them on."""

    first: int = 1
    """Index of the first token that is scored; the one at 0 has nothing before it."""
    num_top: int = 0
    """How many of the most likely tokens are named at each place."""


class PoolPrompt(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Average the hidden states of the prompt."""

    kind: PoolingKind


PromptReading = ScorePrompt | PoolPrompt


class TokenScore(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One token of a prompt, by the model's own distribution before any sampling rule."""

    token_id: TokenId
    logprob: float
    rank: int
    """1: the most likely; equals by id."""
    top: tuple[tuple[TokenId, float], ...]
    """The most likely (token id, logprob) pairs, best first."""


def rows_of(reading: PromptReading, *, num_prompt: int) -> range:
    """Indices of the prompt's tokens whose rows are read; a token is scored by the row before
    it."""
    if isinstance(reading, ScorePrompt):
        return range(reading.first - 1, num_prompt - 1)
    match reading.kind:
        case "last":
            return range(num_prompt - 1, num_prompt)
        case "cls":
            return range(1)
        case "mean":
            return range(num_prompt)
        case _:
            assert_never(reading.kind)
