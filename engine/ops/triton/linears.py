"""Linears on a GPU: cuBLAS's, or our kernel where it was measured faster, or ours throughout.

For up to 32 rows the chip's table (`tools/tune`) says at which shapes our kernel beats cuBLAS;
where it has no entry, and no table ships, cuBLAS computes. In the batch-invariant mode our kernel
computes every linear with tiles and splits that follow from the weights' shape alone.
"""

# Shapes: T tokens, R rows, K features in, N features out, F features of an MLP.

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.ops.contract import Activation
from engine.ops.triton.launch import Launch, capability, dtype_name, tuned_launches
from engine.ops.triton.linear import linear, linear_in_parts

FEW_ROWS = 32
"""Up to so many rows a linear is bound by its weights' bytes, and the table is asked."""
Kind = Literal["plain", "added", "gated", "head"]
"""What becomes of the sums: rounded; left as float32 parts; activated, gate with up; float32."""
_WIDE = 16_384
_PROGRAMS = 192
"""Programs that keep the multiprocessors of an H200 (132) and of a B200 (148) busy."""
_LEAST_SPLIT = 512


def linear_class(
    num_rows: int, num_columns: int, width: int, kind: Kind, dtype: torch.dtype
) -> str:
    """Of at most `FEW_ROWS` rows: `num_columns` are the weights' rows, gate and up alike."""
    return f"{kind}-m{block_of(num_rows)}-n{num_columns}-k{width}-{dtype_name(dtype)}"


def block_of(num_rows: int) -> int:
    """Rows of the tile that few rows take."""
    return 16 if num_rows <= 16 else 32


def invariant_launch(num_columns: int, width: int, kind: Kind, dtype: torch.dtype) -> Launch:
    """One for all batches: 64 rows, as Hopper's tensor cores multiply at least; K in splits where
    the columns alone make too few programs. A gate's sums stay whole."""
    if dtype.itemsize == 4:  # no tensor cores: products of float32 live in registers
        return Launch(block_m=16, block_n=32, block_k=32, num_warps=4, num_stages=1)
    block_n = 128 if num_columns >= _WIDE and kind != "gated" else 64
    programs = -(-num_columns // block_n)
    wanted = 1 if kind == "gated" else -(-_PROGRAMS // programs)
    splits = max(1, min(wanted, width // _LEAST_SPLIT))
    return Launch(block_m=64, block_n=block_n, block_k=64, num_warps=4, num_stages=4, splits=splits)


@dataclass(frozen=True, slots=True, eq=False)
class GpuLinear:
    """Implements `engine.ops.contract.Linear` and, of kind "head", `.LogitsHead`."""

    weight_NK: Tensor
    bias_N: Tensor | None
    kind: Kind
    invariant: bool = False
    early: bool = False
    """As `engine.ops.triton.bound.dependent`."""
    _launches: dict[int, Launch | None] = field(default_factory=dict, init=False)

    def __call__(self, x_TK: Tensor, out: Tensor | None = None) -> Tensor:
        """float32 [T, N] of a "head", written to `out` if one is given; of kind "added" perhaps
        float32 parts [P, T, N]; else [T, N] of x's dtype, of a "gated" one too."""
        launch = None if self.kind == "gated" else self._launch(x_TK.shape[0])
        if launch is None:
            return self._by_cublas(x_TK, out)
        if self.kind == "added":
            return linear_in_parts(
                x_TK, self.weight_NK, self.bias_N, launch=launch, early=self.early
            )
        return linear(
            x_TK, self.weight_NK, self.bias_N, launch=launch, out=out, early=self.early,
            dtype=torch.float32 if self.kind == "head" else x_TK.dtype,
        )  # fmt: skip

    def gated(self, x_TK: Tensor, activation: Activation) -> Tensor | None:
        """[T, F] of a "gated" one, where our kernel computes it."""
        launch = self._launch(x_TK.shape[0])
        if launch is None:
            return None
        return linear(
            x_TK, self.weight_NK, self.bias_N, launch=launch, dtype=x_TK.dtype,
            activation=activation, early=self.early,
        )  # fmt: skip

    def _launch(self, num_rows: int) -> Launch | None:
        if not self.invariant and num_rows > FEW_ROWS:
            return None
        block = 0 if self.invariant else block_of(num_rows)
        if block not in self._launches:
            (num_columns, width), dtype = self.weight_NK.shape, self.weight_NK.dtype
            if self.invariant:
                found: Launch | None = invariant_launch(num_columns, width, self.kind, dtype)
            else:
                shape = linear_class(num_rows, num_columns, width, self.kind, dtype)
                table = tuned_launches(capability(self.weight_NK.device))
                found = table.get(("linear", shape))
            self._launches[block] = found
        return self._launches[block]

    def _by_cublas(self, x_TK: Tensor, out: Tensor | None) -> Tensor:
        if self.kind != "head":
            return F.linear(x_TK, self.weight_NK, self.bias_N)
        return wide_logits(x_TK, self.weight_NK, self.bias_N, out)


def wide_logits(
    x_RK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out: Tensor | None
) -> Tensor:
    """float32 [R, N] by cuBLAS in one step, never rounded to x's dtype on the way."""
    if out is None:
        out = torch.empty((len(x_RK), len(weight_NK)), dtype=torch.float32, device=x_RK.device)
    if x_RK.dtype == torch.float32:
        torch.mm(x_RK, weight_NK.T, out=out)
    elif x_RK.is_cuda and _MULTIPLIES_WIDE:
        torch.mm(x_RK, weight_NK.T, out_dtype=torch.float32, out=out)
    else:  # torch before 2.8, or the interpreter's host
        out.copy_(F.linear(x_RK, weight_NK))
    return out if bias_N is None else out.add_(bias_N)


_MULTIPLIES_WIDE = hasattr(torch.ops.aten.mm, "dtype_out")
