"""What two ends measure together: leases to fetch, and what came of fetching them. Values only.

The two ends may be in two processes or on two machines, so everything here travels.
"""

import msgspec

from protocol.messages import Ticket


class TrialLeases(msgspec.Struct, frozen=True, kw_only=True):
    """Leases for one sink to measure one transport with; each can be fetched once."""

    transport: str
    warm: Ticket
    bulk: tuple[Ticket, ...]
    single: tuple[Ticket, ...]
    """Of one block each."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """The transport works."""

    transport: str
    gb_per_s: float
    """Median over the bulk fetches, from asking to verified; 10^9 bytes."""
    best_gb_per_s: float
    p50_us: float
    """Of fetching one block, from asking to verified."""
    p99_us: float
    block_bytes: int
    total_bytes: int
    """Of one bulk fetch."""


class Unusable(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """The transport does not work between these two."""

    transport: str
    why: str


Outcome = Measured | Unusable
