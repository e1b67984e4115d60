"""What a rank takes of a tensor where several share a model; the only rank takes all of it.

Pure but for the tensor that is cut. Says nothing of how ranks' answers come together.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Axis = Literal[0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Which of the `world` ranks that share a model."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: is {self.rank}, must be 0 to {self.world - 1}")

    def share_of(self, size: int, *, unit: int = 1) -> tuple[int, int]:
        """First and how many of `size` numbers in units that stay whole, dealt in order; more
        ranks than units share them, as they do KV heads (`protocol.layout.shard`). Raises
        ValueError where the units cannot be dealt evenly."""
        units = size // unit
        if units % self.world and self.world % units:
            raise ValueError(f"world: is {self.world}, must divide {units} or be divided by it")
        first, count = self.rank * units // self.world, max(1, units // self.world)
        return first * unit, count * unit


WHOLE = Shard()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How ranks share a tensor, or each linear of a stack; as it is: not at all."""

    axis: Axis | None = None
    sections: tuple[int, ...] = ()
    """Sizes of what lies one after the other along `axis`, each shared by itself; (): one."""
    unit: int = 1
    """So many numbers along `axis` stay together: a head."""
    once: bool = False
    """Ranks' answers are summed: the first one has it, the others zeros."""

    def size_of(self, size: int, shard: Shard) -> int:
        """How many of `size` numbers along `axis` the rank has."""
        return sum(shard.share_of(one, unit=self.unit)[1] for one in self.sections or (size,))

    def part_of(self, whole: Tensor, shard: Shard) -> Tensor:
        if shard.world == 1:
            return whole
        if self.once:
            return whole if shard.rank == 0 else torch.zeros_like(whole)
        if self.axis is None:
            return whole
        start, pieces = 0, list[Tensor]()
        for size in self.sections or (whole.shape[self.axis],):
            first, count = shard.share_of(size, unit=self.unit)
            pieces.append(whole.narrow(self.axis, start + first, count))
            start += size
        return torch.cat(pieces, dim=self.axis)


NOT_CUT = Cut()
