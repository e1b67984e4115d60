"""The formats of weights with fewer bits than they are computed in, a row each."""

# Shapes: N features out, K features in.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from engine.checkpoint.quant import mxfp4

FormatName = Literal["mxfp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What stands in a checkpoint in place of a weight [N, K]."""

    block: int
    """Numbers of a row that share a scale; K is a multiple of it."""
    tensors: Callable[[int, int], Mapping[str, tuple[int, ...]]]
    """Of N and K: the tensors, bytes all, by the ends of their names; ranks share their first two
    dims as they would share the weight's."""
    dequantise: Callable[..., Tensor]
    """float32 [N, K] of those tensors, in their order."""


FORMATS: Mapping[FormatName, Format] = {
    "mxfp4": Format(block=mxfp4.BLOCK, tensors=mxfp4.tensors, dequantise=mxfp4.dequantise),
}
