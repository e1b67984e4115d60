"""Writes keys and values of a step's tokens to their slots of the paged pool.

The paging is that of PagedAttention (Kwon et al., SOSP 2023); a block holds
[layer, K/V, head, token, dim] here. `engine.kernels.rope_store` does this and the rotation in one
pass; this one stands alone for keys that need none. Twin: `engine.attention.store`.
"""

# Shapes: T tokens, G KV heads, S token slots of a block, D head dim, B blocks.

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.launch import FUSED, as_stride, power_of_two


@triton.jit(do_not_specialize_on_alignment=["slots"])  # type: ignore[untyped-decorator]
def store_kv_kernel(  # type: ignore[no-untyped-def]
    k, v, slots, pool,
    k_stride, v_stride, block_stride, kv_stride, head_stride,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Program t stores token t; a slot below 0 belongs to no token and stores nothing."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        at = tl.arange(0, TILE)
        inside = at < NUM_HEADS * HEAD_DIM
        goal = pool + slot // BLOCK_TOKENS * block_stride + slot % BLOCK_TOKENS * HEAD_DIM
        goal += at // HEAD_DIM * head_stride + at % HEAD_DIM
        keys = tl.load(k + token * k_stride + at, mask=inside)
        values = tl.load(v + token * v_stride + at, mask=inside)
        tl.store(goal, keys.to(pool.dtype.element_ty), mask=inside)
        tl.store(goal + kv_stride, values.to(pool.dtype.element_ty), mask=inside)


def store_kv(layer_pool: Tensor, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """To layer_pool [B, 2, G, S, D]; `slots_T` int64, -1 for a row that only pads the batch.
    Heads and dims of a token must be contiguous."""
    num_tokens, num_heads, head_dim = k_TGD.shape
    assert k_TGD.stride(1) == v_TGD.stride(1) == head_dim or num_heads == 1
    if num_tokens == 0:
        return
    store_kv_kernel[(num_tokens,)](
        k_TGD, v_TGD, slots_T, layer_pool,
        as_stride(k_TGD, 0), as_stride(v_TGD, 0),
        layer_pool.stride(0), layer_pool.stride(1), layer_pool.stride(2),
        NUM_HEADS=num_heads, HEAD_DIM=head_dim, BLOCK_TOKENS=layer_pool.shape[3],
        TILE=power_of_two(num_heads * head_dim), **FUSED,
    )  # fmt: skip
