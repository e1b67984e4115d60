"""The contract of whatever computes steps.

Steps are computed in the order of their launches. Nothing of a step may be relied upon, its KV
least of all, before `Launched.tokens` has returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.batch import Chunk, StepReadings, StepTokens
from protocol.layout import KvLayout


class StepHung(RuntimeError):
    """The device does not answer: no step of it, launched or to come, can be waited for."""


class Launched(Protocol):
    """A step on its way."""

    def tokens(self) -> StepTokens:
        """Waits until the KV of every chunk is in its blocks; tokens of the chunks that asked for
        them. A sequence for which the model answers no number is left out. Called once; also when
        it raises, the step is over, unless that is StepHung."""
        ...

    def readings(self) -> StepReadings:
        """Of the chunks that have `read`. Called at most once, after `tokens`."""
        ...


class Runner(Protocol):
    layout: KvLayout
    num_blocks: int
    depth: int
    """Steps that may be launched before the first one's tokens are read: 1 where `launch` returns
    when all is computed, 2 where a device computes one while the next is prepared."""

    def launch(self, chunks: Sequence[Chunk]) -> Launched:
        """Compute the chunks, at most one per sequence, after all of their `copies`; none reads a
        block that another one writes. What the chunks refer to (block tables, outputs) is the
        caller's again when this returns. Raises only when nothing of the step is under way."""
        ...


@dataclass(frozen=True, slots=True)
class ComputedStep:
    """A step that was computed before `launch` returned."""

    sampled: StepTokens
    read: StepReadings = field(default_factory=dict)

    def tokens(self) -> StepTokens:
        return self.sampled

    def readings(self) -> StepReadings:
        return self.read
