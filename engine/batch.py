"""What one forward computes, and what it returns: the words between scheduler and runner.

Made by `engine.scheduler`, consumed by a `Runner`. Pure values, no tensors; whoever builds a
chunk guarantees that its block table covers `start + len(token_ids)` tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from protocol.messages import Sampling

SequenceId = NewType("SequenceId", str)
"""One sequence inside one engine; never crosses a process."""
PENDING = -1
"""Stands for a token that a launched step samples and nobody has read yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Part of one sequence to compute in this step: one token (decode) or several (prefill)."""

    sequence: SequenceId
    token_ids: Sequence[int]
    """Tokens whose KV this step computes, at positions `start`, `start + 1`, ..."""
    start: int
    block_table: Sequence[int]
    """Block id of token block i in KV group g at [i * num_groups + g]; -1 where nobody can reach
    its tokens any more (`engine.kvgroups`)."""
    sampling: Sampling | None
    """None: no token is sampled after this chunk (more of the prompt is to come)."""
    prompt_ids: Sequence[int]
    """The prompt's distinct tokens, in any order; empty unless a repetition penalty asks."""
    outputs: Sequence[int]
    """Every token generated so far, by whichever worker: what the penalties see."""
    pending: int = 0
    """Tokens after `outputs` that were sampled by steps whose tokens nobody has read yet; then
    `token_ids` is `(PENDING,)`, for the newest of them."""

    @property
    def num_outputs(self) -> int:
        """Tokens before the one sampled after this chunk: what `min_tokens` counts."""
        return len(self.outputs) + self.pending

    @property
    def position(self) -> int:
        """Absolute index of the token sampled after this chunk; keys the sampler."""
        return self.start + len(self.token_ids)


StepInput = tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """A chosen token. Logprobs are of the model's own distribution, before temperature,
    penalties and bias; None and empty when they were not asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most likely (token id, logprob) pairs, best first."""
