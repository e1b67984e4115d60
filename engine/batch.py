"""What one forward computes, and what it returns: the words between scheduler and runner.

Pure values, no tensors; whoever builds a chunk guarantees that its block table covers
`start + len(token_ids)` tokens.

msgspec structs, not dataclasses: one of each is made per token, and a frozen dataclass takes ten
times as long (32 chunks: 27 us, as structs 2 us). Without `gc`: none is ever part of a cycle.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NewType, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.messages import Sampling
from protocol.readings import TokenScore

SequenceId = NewType("SequenceId", str)
"""One sequence inside one engine; never crosses a process."""
AdapterId = NewType("AdapterId", str)
"""A set of weights beside the model's own, as a LoRA."""

Words = NDArray[np.int32]
"""Bit t % 32 of word t // 32: token t is allowed. Tokens beyond the words are not."""

PENDING = -1
"""Stands for a token that an earlier step samples and that nobody has read yet."""


class Allowed(Protocol):
    """Which tokens may be the one sampled after a chunk."""

    def words(self) -> Words:
        """Waits until they are known; for whoever has the logits, and before that nobody."""
        ...


class ReadRows(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which of a chunk's tokens have their rows read, and how."""

    rows: range
    """Places in the chunk."""
    targets: Sequence[int] | None
    """The token after each of them, to be scored; None: their hidden states are summed."""
    num_top: int = 0


class Chunk(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Part of one sequence to compute in this step: one token (decode) or several (prefill).

    Tables and outputs are the scheduler's own lists: what they hold is this step's only until
    `Runner.launch` returns.
    """

    sequence: SequenceId
    token_ids: Sequence[int]
    """Tokens whose KV this step computes, at positions `start`, `start + 1`, ...; `(PENDING,)`
    for the newest of the `pending` ones, which the runner has and nobody else."""
    start: int
    block_table: Sequence[int]
    """Block id of token block i in KV group g at [i * num_groups + g]; -1 where nobody sees its
    tokens any more (`engine.kvcache.windows`)."""
    sampling: Sampling | None
    """None: no token is sampled after this chunk (more of the prompt is to come)."""
    prompt_ids: Sequence[int]
    """The prompt's distinct tokens, in any order; empty unless a repetition penalty asks."""
    outputs: Sequence[int]
    """Every token generated and read so far, by whichever worker: what the penalties see. The same
    list in each chunk of a sequence, by which a runner knows it again."""
    allowed: Allowed | None = None
    """None: all tokens are. What a grammar says; penalties, bias and bans come after it."""
    num_prompt: int = 0
    """Tokens of the whole prompt, which a dynamic rope turns all of them for."""
    pending: int = 0
    """Tokens after `outputs` that launched steps sample and nobody has read yet."""
    read: ReadRows | None = None
    copies: tuple[tuple[int, int], ...] = ()
    """(source, target): blocks of the pool that are copied before anything of the step computes."""
    adapter: AdapterId | None = None
    """Whose weights are added to the model's; no runner knows any yet, so it is None."""

    @property
    def num_outputs(self) -> int:
        """Tokens generated before the one sampled after this chunk; keys `min_tokens`."""
        return len(self.outputs) + self.pending

    @property
    def position(self) -> int:
        """Absolute index of the token sampled after this chunk; keys the sampler."""
        return self.start + len(self.token_ids)


StepInput = tuple[Chunk, ...]


class SampledToken(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A chosen token. Logprobs are of the model's own distribution, before temperature,
    penalties and bias; None and empty when they were not asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most likely (token id, logprob) pairs, best first."""


StepTokens = Mapping[SequenceId, Sequence[SampledToken]]
"""Of each sequence in the order of their positions; one, as long as a step samples no more."""


class ScoredRows(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    scores: tuple[TokenScore, ...]
    """Of `ReadRows.targets`."""


class SummedRows(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    num_rows: int
    values: "array[float]"
    """Their hidden states, summed as float64."""


RowsRead = ScoredRows | SummedRows
StepReadings = Mapping[SequenceId, RowsRead]
"""Of each chunk that has `read`."""
