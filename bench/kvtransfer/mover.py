"""What every contestant gives: an end that sends and an end that receives, each in a process.

Called by `bench.kvtransfer.side` in this order, on either side: `open` for a case, then for each
iteration source `stage`, sink `arm`, source `send` beside sink `receive`, then `settle` on both;
`close` at the very end. Only `send` and `receive` are timed; CPU is counted from `stage` and
`arm` to where the receiver knows that all is there.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.kvtransfer.aside import Aside
from bench.kvtransfer.case import Case, Move

Setting = Literal["plain", "tuned"]
"""Plain: as installed. Tuned: glibc's non-temporal threshold at 32 KiB and pools advised to huge
pages. Everyone runs in both and is quoted in the better."""
Side = Literal["source", "sink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an end runs."""

    side: Side
    setting: Setting
    aside: Aside
    pool_bytes: int
    """The largest pool of any case to come."""
    option: str
    """The contestant's variant, e.g. "write"."""


class SourceEnd(Protocol):
    def open(self, case: Case) -> NDArray[np.uint64]:
        """Register, connect, prepare descriptors; return the pool's words."""

    def stage(self, move: Move) -> bytes:
        """The blocks are written: what comes before the move. The answer goes to `arm`."""

    def send(self, move: Move) -> float | None:
        """Send, and return when it began in seconds of the monotonic clock; None where the
        receiver begins."""

    def settle(self, move: Move) -> None:
        """The receiver has everything: take back what the move held."""

    def close(self) -> None: ...


class SinkEnd(Protocol):
    def open(self, case: Case) -> NDArray[np.uint64]:
        """Register, connect, prepare descriptors; return the pool's words."""

    def arm(self, move: Move, staged: bytes) -> None:
        """Do what can be done before the source begins."""

    def receive(self, move: Move) -> tuple[float | None, float]:
        """When it began (None: the source says) and when all bytes were known to be there."""

    def settle(self, move: Move) -> None: ...

    def close(self) -> None: ...
