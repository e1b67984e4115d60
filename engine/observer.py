"""What an engine tells the worker that runs it, and in which words.

Every method is called on the engine thread, in the order things happened, and must neither block
nor raise: an exception here stops the engine. Commands to the engine may be given from here; they
take effect before the next launch.
"""

from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import msgspec

from engine.batch import RowsRead, SampledToken, SequenceId
from engine.sequence import SequenceUsage, Verdict
from protocol.blocks import BlockChange
from protocol.ids import BlockHash


class SequenceToken(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One token of one sequence. Index 0 is the first after the prompt, given ones included."""

    id: SequenceId
    index: int
    token: SampledToken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixToPull:
    """A beginning whose KV somebody else is believed to have cached."""

    seed: BlockHash
    """Where its hash chain begins."""
    token_ids: Seq[int]
    """Whole blocks of them, from token 0."""
    hashes: tuple[BlockHash, ...]
    """Of each of those blocks."""
    first_block: int
    """The first that the own cache lacks."""
    block_ids: tuple[int, ...]
    """Where that one and those after it go."""


class EngineObserver(Protocol):
    def admitted(
        self,
        sequence: SequenceId,
        block_table: tuple[int, ...],
        generations: tuple[int, ...],
        num_cached_tokens: int,
        queued_s: float,
    ) -> None:
        """Blocks are allocated, and a pull is over; called once, even if preempted later. The table
        is flat, as of `engine.batch.Chunk`, with generation 0 where it has no block. The KV of the
        first `num_cached_tokens` tokens is in it, what was pulled included.

        HANDOVER: lend these; from here the blocks stay until `Engine.release`, whatever the
        ending. The table has no block for tokens that are out of a window at the end.
        REMOTE: start the fetch of those blocks whose tokens come after `num_cached_tokens`;
        from here they stay until `Engine.fetch_done`, whatever the ending.
        """

    def pull(self, sequence: SequenceId, prefix: PrefixToPull) -> None:
        """Fetch this before the sequence is admitted, from whoever was named to the worker, or do
        not; from here its blocks stay until `Engine.pull_done`, whatever the ending."""

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        """HANDOVER: the KV of the first `num_tokens` tokens is written."""

    def read(self, sequence: SequenceId, first: int, read: RowsRead) -> None:
        """Rows of its prompt from that of token `first` on: each row that it asks for once, in
        order, the last before its first token or its ending."""

    def step(self, tokens: Seq[SequenceToken]) -> Collection[SequenceId]:
        """Tokens of one engine step, one of each sequence; called again for those that have more.
        Returns the sequences whose text ends with them."""
        ...

    def ended(self, sequence: SequenceId, verdict: Verdict, usage: SequenceUsage) -> None:
        """The last word about a submission; exactly one each."""

    def settled(self) -> None:
        """All that this step had to say is said, endings included: it may be sent."""

    def blocks_changed(self, changes: Seq[BlockChange]) -> None:
        """What the prefix cache gained and lost since the last call, in order."""

    def broken(self, error: BaseException) -> None:
        """The engine has given up; every submission has had its ending. Exit the process."""
