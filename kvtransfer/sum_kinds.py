"""The kinds of checksums that pieces of blocks can have, and which of them two pools use.

Chosen once for each stream, so sums of two kinds are never compared.
"""

from collections.abc import Sequence
from typing import Final, Literal

SumKind = Literal["xxh3", "splitmix64-sum"]
XXH3: Final = "xxh3"
"""xxh3_64 of a piece's bytes: what hosts take in one pass with a copy, at no cost."""
WORD_SUM: Final = "splitmix64-sum"
"""Of a piece's words of 8 bytes, taken in any order (`kvtransfer.kernels.copy`): what a device
takes, and a host too, with AVX2 a little slower than xxh3."""
SUM_KINDS: Final[tuple[SumKind, ...]] = (XXH3, WORD_SUM)
"""All there are; what a host's pool can have, the best first."""
WORD_SUM_GRAIN_BYTES: Final = 16
"""What it can be taken of: ranges whose offsets and sizes are multiples of this."""


def best_kind(wanted: Sequence[str], had: Sequence[SumKind]) -> SumKind | None:
    """The first that is wanted and had; None: the two can never check each other's bytes."""
    return next((kind for name in wanted for kind in had if kind == name), None)
