"""What is tried of the linears of few rows: our kernel in many shapes, beside cuBLAS.

The default is cuBLAS, and an entry is written only where the kernel is the faster.
"""

# Shapes: T tokens, K features in, N features out, P parts.

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.ops.triton import gated
from engine.ops.triton.launch import Launch
from engine.ops.triton.linear import linear, linear_in_parts
from engine.ops.triton.linears import Kind, block_of, linear_class, wide_logits
from tools.tune.subject import Subject, noise

CUBLAS = Launch()
"""Stands for it: no tile of our kernel is empty."""
LINEARS: Sequence[tuple[Kind, int, int]] = (
    ("plain", 6_144, 4_096),
    ("added", 4_096, 4_096),
    ("gated", 28_672, 4_096),
    ("added", 4_096, 14_336),
    ("head", 128_256, 4_096),
)
"""Kind, features out and in, of an 8B Llama."""
WEIGHT_BYTES = 192 << 20
"""Copies of a small linear's weights that are read in turn, or a GPU's L2 would serve them."""


def linears_subjects() -> Iterator[Subject]:
    for kind, num_columns, width in LINEARS:
        copies = -(-WEIGHT_BYTES // (2 * num_columns * width))
        weights_NK = [noise(num_columns, width) for _ in range(copies)]
        for num_rows in (1, 16, 32):
            x_TK = noise(num_rows, width)
            yield Subject(
                kernel="linear",
                shape=linear_class(num_rows, num_columns, width, kind, torch.bfloat16),
                default=CUBLAS,
                candidates=candidates(kind, num_columns, width, block_m=block_of(num_rows)),
                run=lambda one, kind=kind, x=x_TK, weights=weights_NK: of_all(  # type: ignore[misc]
                    one, kind, x, weights
                ),
            )


def candidates(kind: Kind, num_columns: int, width: int, *, block_m: int) -> Sequence[Launch]:
    """At least two and at most 32 programs for each of some 130 multiprocessors."""
    columns = num_columns // 2 if kind == "gated" else num_columns
    splits = (1,) if kind in ("gated", "head") else (1, 2, 4, 8, 16)
    return [
        Launch(
            block_m=block_m, block_n=n, block_k=k, num_warps=warps, num_stages=stages, splits=parts
        )
        for n, k, warps, stages, parts in product(
            (16, 32, 64, 128), (64, 128, 256), (2, 4, 8), (3, 4, 6), splits
        )
        if 96 <= -(-columns // n) * parts <= 4_096
        and width // parts >= 4 * k
        and stages * (n + block_m) * k * 2 <= 160 << 10
    ]


def of_all(launch: Launch, kind: Kind, x_TK: Tensor, weights_NK: Sequence[Tensor]) -> Tensor:
    """The product with the last, after those with the others."""
    return [multiplied(launch, kind, x_TK, weight_NK) for weight_NK in weights_NK][-1]


def multiplied(launch: Launch, kind: Kind, x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """What the linear's reader would have: parts are summed."""
    if launch == CUBLAS:
        if kind == "head":
            return wide_logits(x_TK, weight_NK, None, None)
        y_TN = F.linear(x_TK, weight_NK)
        return gated.gated(y_TN, "silu", dtype=x_TK.dtype) if kind == "gated" else y_TN
    if kind == "added":
        parts_PTN = linear_in_parts(x_TK, weight_NK, None, launch=launch)
        return parts_PTN[0] if len(parts_PTN) == 1 else parts_PTN.sum(0)
    return linear(
        x_TK, weight_NK, None, launch=launch,
        dtype=torch.float32 if kind == "head" else x_TK.dtype,
        activation="silu" if kind == "gated" else None,
    )  # fmt: skip
