"""Blocks and the sets of slots that hold them: what the table in C and its twin both do.

Hashes come packed, `HASH_BYTES` each. A slot is a small number; whoever gives them out gives none
out again before a sweep has taken it out of every set. Bounded: what there is no room for is
refused, never in place of another.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.blocks import HASH_BYTES

Slots = NDArray[np.uint32]
NOBODY = 0xFFFF_FFFF
"""In place of a slot."""


class HolderTable(Protocol):
    @property
    def num_blocks(self) -> int:
        """Different blocks, those of slots that wait for a sweep included."""

    @property
    def num_lost(self) -> int:
        """Blocks forgotten so far though somebody held them, for want of room to say who."""

    def reserve_slots(self, num_slots: int) -> None:
        """Slots below it may be used. Raises MemoryError."""

    def store_blocks(self, slot: int, packed: bytes) -> int:
        """Returns how many there was no room for."""

    def evict_blocks(self, slot: int, packed: bytes) -> None: ...

    def set_closed(self, slot: int, is_closed: bool) -> None:
        """Whether it may be believed from now on that the slot holds, of every chain, all that
        comes before whatever it holds: then not every block is looked at. Slots begin without."""

    def walk_chain(self, packed: bytes, slots: Slots, hoped: Slots | None) -> Slots:
        """How many leading blocks each of `slots` holds, in their order; of NOBODY 0. `hoped`: how
        many it is taken to hold anyway."""

    def begin_sweep(self, slots: Sequence[int]) -> None:
        """From now on `sweep_some` takes these out of every set."""

    def sweep_some(self) -> bool:
        """One slice, a fraction of a millisecond; True once they are in none."""


def num_hashes(packed: bytes) -> int:
    return len(packed) // HASH_BYTES
