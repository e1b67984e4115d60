"""What a rank takes of a tensor where several share a model; the only rank takes all of it.

Pure but for the tensor that is cut. Says nothing of how the ranks' answers come together.
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
class TensorSpec:
    """One tensor of a checkpoint, and how ranks share it."""

    shape: tuple[int, ...]
    axis: Axis | None = None
    """The dim that ranks share, of one row where the tensor is a stack of experts; None: each has
    the whole."""
    sections: tuple[int, ...] = ()
    """Sizes of what lies one after the other along `axis`, each shared by itself; (): one."""
    unit: int = 1
    """So many numbers along `axis` stay together: a head."""
    once: bool = False
    """Ranks' answers are summed: the first one has it, the others zeros."""
    quantised: bool = False
    """Bytes, not floats."""

    def part_of(self, whole: Tensor, shard: Shard) -> Tensor:
        """What the rank has of the tensor, or of one row of the stack."""
        if shard.world == 1:
            return whole
        if self.once:
            return whole if shard.rank == 0 else torch.zeros_like(whole)
        if self.axis is None:
            return whole
        axis, start, pieces = self.axis, 0, list[Tensor]()
        for size in self.sections or (whole.shape[axis],):
            first, count = shard.share_of(size, unit=self.unit)
            pieces.append(whole.narrow(axis, start + first, count))
            start += size
        return torch.cat(pieces, dim=axis)
