"""What two ends measure together: leases to fetch, and what came of fetching them. Values only.

The two ends may be in two processes or on two machines, so everything here travels.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from protocol.layout import KvLayout, compat_hash
from protocol.messages import Ticket

LAYOUT: Final = KvLayout(
    num_layers=8, num_kv_heads=8, head_dim=64, block_tokens=16, dtype="bfloat16"
)
"""256 KiB a block, as of a model of a billion parameters."""
COMPAT: Final = compat_hash(LAYOUT, model_revision="baton doctor")
WARM_BLOCKS: Final = 16
"""4 MiB: opens the link, and is the measurement where the way is slow."""
BULK_BLOCKS: Final = 256
"""64 MiB: beyond the caches of most machines."""
NUM_BULK: Final = 8
NUM_SINGLE: Final = 200
"""Enough for a p99."""


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


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
