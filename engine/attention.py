"""Paged attention in torch: gather the context, then SDPA. The oracle of the C kernel.

Called by `engine.layers`. One sequence at a time; correct first.
"""

# Shapes: T tokens, H query heads, G KV heads, S token slots of a block, D head dim, C context
# tokens of one sequence.

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.inputs import ForwardInputs


def store(layer_pool: Tensor, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """Write k and v of every token to its slot of layer_pool [B, 2, G, S, D]."""
    block_tokens = layer_pool.shape[3]
    blocks_T, places_T = slots_T // block_tokens, slots_T % block_tokens
    layer_pool[blocks_T, 0, :, places_T] = k_TGD.to(layer_pool.dtype)
    layer_pool[blocks_T, 1, :, places_T] = v_TGD.to(layer_pool.dtype)


def attend(
    q_THD: Tensor, layer_pool: Tensor, inputs: ForwardInputs, *, window: int | None
) -> Tensor:
    """[T, H, D]: every token over its sequence's context up to itself, `window` tokens at most."""
    out_THD = torch.empty_like(q_THD)
    starts = inputs.starts_S1.tolist()
    for s, end in enumerate(inputs.ends_S.tolist()):
        mine = slice(starts[s], starts[s + 1])
        k_GCD, v_GCD = _context(layer_pool, inputs.tables_SB[s], end)
        out_HTD = F.scaled_dot_product_attention(
            q_THD[mine].transpose(0, 1)[None],
            k_GCD.to(q_THD.dtype)[None],
            v_GCD.to(q_THD.dtype)[None],
            attn_mask=visible(starts[s + 1] - starts[s], end, window=window),
            enable_gqa=True,
        )[0]
        out_THD[mine] = out_HTD.transpose(0, 1)
    return out_THD


def visible(num_queries: int, num_context: int, *, window: int | None) -> Tensor:
    """[T, C] True where query T (the last ones of the context) may look at C."""
    positions_T1 = torch.arange(num_context - num_queries, num_context)[:, None]
    positions_C = torch.arange(num_context)
    seen_TC = positions_C <= positions_T1
    if window is not None:
        seen_TC &= positions_C > positions_T1 - window
    return seen_TC


def _context(layer_pool: Tensor, table_B: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    block_tokens = layer_pool.shape[3]
    table = table_B[: -(-num_tokens // block_tokens)].long()
    both = layer_pool[table].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :num_tokens]
    return both[0], both[1]
