"""What the scheduler did, in order; the loop tells its observer. Pure values."""

from dataclasses import dataclass

from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Admitted:
    """Its blocks are allocated, for the first time."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Computed:
    """HANDOVER: the KV of the first `num_tokens` tokens is written."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Ended:
    """`sequence.verdict` is final."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Freed:
    """It owns nothing any more; its id may be used again."""

    sequence: Sequence


Effect = Admitted | Computed | Ended | Freed
