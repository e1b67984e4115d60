"""Copies whole KV blocks between a pool, where they lie scattered, and contiguous staging.

For moves within one device and to pinned host memory; `kvtransfer.kernels.copy` moves pieces
with checksums. One kernel: each side is either listed or contiguous.
"""

# Shapes: B blocks of a pool, N blocks moved, W words of a block.

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.launch import FUSED

TILE_WORDS = 2_048
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@triton.jit  # type: ignore[untyped-decorator]
def copy_blocks_kernel(  # type: ignore[no-untyped-def]
    source, target, blocks, num_words, FROM_POOL: tl.constexpr, TILE: tl.constexpr
):
    """Program (n, i) copies tile i of block n; a listed block below 0 is no block."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.load(blocks + row)
    if block >= 0:
        at = tl.program_id(1) * TILE + tl.arange(0, TILE)
        inside = at < num_words
        from_row = block if FROM_POOL else row
        to_row = row if FROM_POOL else block
        words = tl.load(source + from_row * num_words + at, mask=inside)
        tl.store(target + to_row * num_words + at, words, mask=inside)


def gather(pool: Tensor, blocks_N: Tensor, staging: Tensor) -> None:
    """staging[n] = pool[blocks[n]]; both contiguous, [B, ...] and [N, ...], `blocks_N` int64.
    Where blocks[n] is -1, staging[n] stays."""
    _copy(pool, staging, blocks_N, from_pool=True)


def scatter(staging: Tensor, blocks_N: Tensor, pool: Tensor) -> None:
    """pool[blocks[n]] = staging[n], but for blocks[n] == -1; no block twice."""
    _copy(staging, pool, blocks_N, from_pool=False)


def gather_twin(pool: Tensor, blocks_N: Tensor, staging: Tensor) -> None:
    listed_N = blocks_N >= 0
    staging[listed_N] = pool[blocks_N[listed_N]]


def scatter_twin(staging: Tensor, blocks_N: Tensor, pool: Tensor) -> None:
    listed_N = blocks_N >= 0
    pool[blocks_N[listed_N]] = staging[listed_N]


def _copy(source: Tensor, target: Tensor, blocks_N: Tensor, *, from_pool: bool) -> None:
    if not len(blocks_N):
        return
    source_BW, target_BW = _as_words(source), _as_words(target)
    num_words = source_BW.shape[1]
    copy_blocks_kernel[(len(blocks_N), triton.cdiv(num_words, TILE_WORDS))](
        source_BW, target_BW, blocks_N, num_words, FROM_POOL=from_pool, TILE=TILE_WORDS,
        num_warps=8, **FUSED,
    )  # fmt: skip


def _as_words(blocks: Tensor) -> Tensor:
    """[B, W] of the widest integers that a block is a whole number of."""
    rows = blocks.view(len(blocks), -1)
    num_bytes = rows.shape[1] * rows.element_size()
    size = next(size for size in _WORDS if num_bytes % size == 0)
    return rows.view(_WORDS[size])
