"""What an engine tells the worker that runs it, and in which words.

Implemented by the services of the two workers. Every method is called on the engine thread, in
the order things happened, and must neither block nor raise: an exception here stops the engine.
Commands to the engine may be given from here; they take effect before the next launch.
"""

from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import msgspec

from engine.batch import SampledToken, SequenceId
from engine.kvcache.prefix_cache import CacheEvent
from engine.sequence import Cancel, Complete, Fail, HandOver, Sequence
from protocol.messages import FailCode, FinishReason


class SequenceToken(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One token of one sequence. Index 0 is the first after the prompt, given ones included."""

    id: SequenceId
    index: int
    token: SampledToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    reason: FinishReason
    num_tokens: int
    """Outputs, those given at submission included."""
    cached_tokens: int
    """Prompt tokens this engine found in its prefix cache."""
    queued_s: float
    prefill_s: float
    """From admission to the first token; for REMOTE the time of the fetch."""
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """HANDOVER: the token is out and the blocks wait for `Engine.release`."""

    cached_tokens: int
    queued_s: float
    prefill_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    code: FailCode
    message: str
    final: bool = False
    """Another worker would fail as well, whatever the code says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    pass


EngineEnding = Finished | HandedOver | Failed | Aborted


class EngineObserver(Protocol):
    def admitted(
        self,
        sequence: SequenceId,
        block_table: tuple[int, ...],
        generations: tuple[int, ...],
        num_cached_tokens: int,
        queued_s: float,
    ) -> None:
        """Blocks are allocated; called once, even if preempted later. The table is flat, as of
        `engine.batch.Chunk`, with generation 0 where it has no block.

        HANDOVER: lend these; from here the blocks stay until `Engine.release`, whatever the
        ending. The table has no block for tokens that are out of a window at the end.
        REMOTE: start the fetch of those blocks whose tokens come after `num_cached_tokens`;
        from here they stay until `Engine.fetch_done`, whatever the ending.
        """

    def computed(self, sequence: SequenceId, num_tokens: int) -> None:
        """HANDOVER: the KV of the first `num_tokens` tokens is written."""

    def step(self, tokens: Seq[SequenceToken]) -> Collection[SequenceId]:
        """All tokens of one engine step. Returns the sequences whose text ends with them."""
        ...

    def ended(self, sequence: SequenceId, ending: EngineEnding) -> None:
        """The last word about a submission; exactly one each."""

    def settled(self) -> None:
        """All that this step had to say is said, endings included: it may be sent."""

    def events(self, events: Seq[CacheEvent]) -> None:
        """What the prefix cache gained and lost since the last call, in order."""

    def broken(self, error: BaseException) -> None:
        """The engine has given up; every submission has had its ending. Exit the process."""


def ending_of(sequence: Sequence, *, now: float) -> EngineEnding:
    """Verdict and stamps as the observer's word."""
    cached = min(sequence.num_cached or 0, len(sequence.prompt))
    admitted = sequence.admitted_at or now
    first = sequence.first_token_at or now
    queued_s, prefill_s = admitted - sequence.submitted_at, first - admitted
    match sequence.verdict:
        case Complete(reason):
            return Finished(
                reason=reason,
                num_tokens=len(sequence.outputs),
                cached_tokens=cached,
                queued_s=queued_s,
                prefill_s=prefill_s,
                decode_s=now - first,
            )
        case HandOver():
            return HandedOver(cached_tokens=cached, queued_s=queued_s, prefill_s=prefill_s)
        case Fail(code, message, final):
            return Failed(code=code, message=message, final=final)
        case Cancel():
            return Aborted()
        case None:
            raise AssertionError(f"sequence {sequence.id} ended without a verdict")
