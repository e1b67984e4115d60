"""Paged attention in torch: gather the context, then softmax. The oracle of the kernels.

Called by `engine.layers`. One sequence at a time; correct first.
"""

# Shapes: T tokens, H query heads, G KV heads, S token slots of a block, D head dim, C context
# tokens of one sequence.

import torch
from torch import Tensor

from engine.inputs import ForwardInputs
from engine.ops import HeadShape


def store(layer_pool: Tensor, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """Write k and v of every token to its slot of layer_pool [B, 2, G, S, D]; a slot below 0
    belongs to a row that only fills a batch up, and is not written."""
    block_tokens = layer_pool.shape[3]
    if layer_pool.device.type == "cpu" and (slots_T < 0).any():
        kept_T = slots_T >= 0
        k_TGD, v_TGD, slots_T = k_TGD[kept_T], v_TGD[kept_T], slots_T[kept_T]
    blocks_T, places_T = slots_T // block_tokens, slots_T % block_tokens
    layer_pool[blocks_T, 0, :, places_T] = k_TGD.to(layer_pool.dtype)
    layer_pool[blocks_T, 1, :, places_T] = v_TGD.to(layer_pool.dtype)


def attend(q_THD: Tensor, layer_pool: Tensor, inputs: ForwardInputs, heads: HeadShape) -> Tensor:
    """[T, H, D]: every token over its sequence's context up to itself, as `heads` says."""
    out_THD = torch.empty_like(q_THD)
    starts = inputs.starts_S1.tolist()
    for s, end in enumerate(inputs.ends_S.tolist()):
        mine = slice(starts[s], starts[s + 1])
        k_GCD, v_GCD = _context(layer_pool, inputs.tables_GSB[heads.group, s], end)
        seen_TC = visible(starts[s + 1] - starts[s], end, window=heads.window)
        out_THD[mine] = _weighed(
            q_THD[mine].transpose(0, 1).float(), k_GCD.float(), v_GCD.float(), seen_TC, heads
        ).transpose(0, 1)
    return out_THD


def _weighed(
    q_HTD: Tensor, k_GCD: Tensor, v_GCD: Tensor, seen_TC: Tensor, heads: HeadShape
) -> Tensor:
    seen_TC = seen_TC.to(q_HTD.device)
    group = heads.num_heads // heads.num_kv_heads
    # Slots that nobody may see can hold anything, NaN included: 0 * NaN would show.
    v_GCD = torch.where(seen_TC.any(0)[:, None], v_GCD, 0)
    k_HCD, v_HCD = (x.repeat_interleave(group, dim=0) for x in (k_GCD, v_GCD))
    score_HTC = q_HTD @ k_HCD.transpose(1, 2) * heads.scale
    if heads.softcap is not None:
        score_HTC = heads.softcap * torch.tanh(score_HTC / heads.softcap)
    score_HTC = torch.where(seen_TC, score_HTC, -torch.inf)
    if heads.sinks_H is None:
        return score_HTC.softmax(-1) @ v_HCD
    sinks_HT1 = heads.sinks_H[:, None, None].expand(-1, len(seen_TC), 1)
    weight_HTC = torch.cat((score_HTC, sinks_HT1), dim=-1).softmax(-1)[..., :-1]
    return weight_HTC @ v_HCD


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
