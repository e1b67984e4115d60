"""One parameter of a checkpoint: its tensors, its format, how ranks share it, and how it loads."""

# Shapes: K features in, N features out.

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.checkpoint.quant.formats import FORMATS, FormatName
from engine.checkpoint.shard import NOT_CUT, Axis, Cut

_OTHER: Mapping[Axis | None, Axis | None] = {0: 1, 1: 0, None: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    cut: Cut = NOT_CUT
    quantised: bool = False
    """Bytes, not floats."""


Specs = dict[str, TensorSpec]
"""By the names of the tensors."""


Read = Callable[[str, torch.dtype, int | None], Tensor]
"""What a rank has of the tensor of this name, on its device; of that row of its first dim alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Heads whose dims 2 i and 2 i + 1 turn together, where ours are i and i + turned / 2. Their
    order within a head is all that differs, and q . k does not depend on it."""

    head_dim: int
    turned: int
    """So many of the first dims of a head."""

    def as_ours(self, rows: Tensor) -> Tensor:
        """`rows` [N, ...] of whole heads, each head's in our order."""
        heads = rows.view(-1, self.head_dim, *rows.shape[1:])
        turned, rest = heads[:, : self.turned], heads[:, self.turned :]
        return torch.cat((turned[:, 0::2], turned[:, 1::2], rest), dim=1).view(rows.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """One linear of the checkpoint, weights [N, K] and perhaps a bias [N], and how it loads."""

    name: str
    shape: tuple[int, int]
    bias: bool = False
    cut: Cut = NOT_CUT
    """Of the weights. Axis 0: a rank makes some of the features; 1: it takes some, and the ranks'
    answers are summed."""
    format: FormatName | None = None
    """None: floats."""
    num_stacked: int | None = None
    """So many linears lie in each tensor, one after the other."""
    transposed: bool = False
    """Floats lie as [K, N]."""
    pairs: Pairs | None = None
    """How its features turn; None: as we turn them, or not at all."""

    @property
    def bias_name(self) -> str:
        return f"{self.name}.bias" if self.num_stacked is None else f"{self.name}_bias"

    @property
    def weights(self) -> Specs:
        """One tensor of floats, or those of the format."""
        end = ".weight" if self.num_stacked is None else ""
        shapes: Mapping[str, tuple[int, ...]] = {end: self.shape}
        cut, quantised = self.cut, self.format is not None
        if self.format is not None:
            shapes = FORMATS[self.format].tensors(*self.shape)
        elif self.transposed:
            shapes, cut = {end: self.shape[::-1]}, replace(cut, axis=_OTHER[cut.axis])
        return {
            f"{self.name}{end}": TensorSpec(shape=self._stack + shape, cut=cut, quantised=quantised)
            for end, shape in shapes.items()
        }

    @property
    def tensors(self) -> Specs:
        if not self.bias:
            return self.weights
        cut = self.cut if self.cut.axis == 0 else Cut(once=self.cut.axis == 1)
        bias = TensorSpec(shape=self._stack + self.shape[:1], cut=cut)
        return self.weights | {self.bias_name: bias}

    def load_weight(self, read: Read, dtype: torch.dtype, number: int = 0) -> Tensor:
        """[N, K] in `dtype` of what a rank has, of linear `number` where they are stacked."""
        row = None if self.num_stacked is None else number
        if self.format is not None:
            tensors = [read(name, torch.uint8, row) for name in self.weights]
            return FORMATS[self.format].dequantise(*tensors).to(dtype)
        (name,) = self.weights
        weight = read(name, dtype, row)
        weight = weight.T if self.transposed else weight
        return weight if self.pairs is None else self.pairs.as_ours(weight)

    def load_bias(self, read: Read, number: int = 0) -> Tensor | None:
        """float32 [N], as `load_weight`."""
        row = None if self.num_stacked is None else number
        bias = read(self.bias_name, torch.float32, row) if self.bias else None
        return bias if bias is None or self.pairs is None else self.pairs.as_ours(bias)

    @property
    def _stack(self) -> tuple[int, ...]:
        return () if self.num_stacked is None else (self.num_stacked,)
