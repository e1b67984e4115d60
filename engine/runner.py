"""The contract of whatever computes a step: `engine.torch_runner` in earnest, a fake in tests.

Called by `engine.loop` from its one thread. A step is complete when `execute` returns: the KV of
every chunk is written to its blocks, so they may be sent, reused or freed.
"""

from collections.abc import Sequence
from typing import Protocol

from engine.batch import Chunk, SampledToken, SequenceId
from protocol.layout import KvLayout


class Launched(Protocol):
    """A step on its way."""

    def tokens(self) -> dict[SequenceId, SampledToken]:
        """Waits for the step; tokens of those chunks that asked for one and whose row is a
        number. All KV of the step is written then."""
        ...


class Runner(Protocol):
    @property
    def layout(self) -> KvLayout: ...

    @property
    def num_blocks(self) -> int: ...

    def execute(self, chunks: Sequence[Chunk]) -> dict[SequenceId, SampledToken]:
        """Compute the chunks, at most one per sequence; tokens of those that ask for one. A
        sequence for which the model answers no number is left out."""
        ...
