"""How a block came that was fetched to see whether KV comes from a peer at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.messages import PrefixSource

CanaryOutcome = Literal["landed", "declined", "failed", "skipped"]
"""Declined: the peer answers and has no block to lend. Skipped: this worker has none to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryEnd:
    outcome: CanaryOutcome
    why: str
    """The transport, or what went wrong."""


OnCanaryEnd = Callable[[CanaryEnd], None]


class CanarySource(Protocol):
    """Fetches such blocks."""

    @property
    def can_fetch(self) -> bool:
        """Not of a model whose layers see windows: such blocks are fetched with a ticket only."""
        ...

    def fetch_block(self, source: PrefixSource, *, within_s: float, on_end: OnCanaryEnd) -> None:
        """`on_end` is told once, on any thread."""
        ...
