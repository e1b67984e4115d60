"""Which experts a token goes to, and with what weights."""

# Shapes: T tokens, E experts, J experts of a token.

from typing import Literal

import torch
from torch import Tensor

Softmax = Literal["before", "after", "sparsemixer"]
"""Over all experts and then the best; over the best only; for each choice over those that are near
it (SparseMixer, arXiv 2409.12136)."""


def route(
    logits_TE: Tensor, *, per_token: int, softmax: Softmax, renormalise: bool, jitter: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The experts of each token and their weights: ids int64 [T, J], weights float32 [T, J].

    `renormalise` makes a token's weights sum to one. `jitter` is for "sparsemixer" alone.
    """
    scores_TE = logits_TE.float()
    if softmax == "sparsemixer":
        return _sparse_mixed(scores_TE, per_token=per_token, jitter=jitter)
    if softmax == "before":
        scores_TE = scores_TE.softmax(-1)
    weights_TJ, ids_TJ = scores_TE.topk(per_token, dim=-1)
    if softmax == "after":
        weights_TJ = weights_TJ.softmax(-1)
    if renormalise:
        weights_TJ = weights_TJ / weights_TJ.sum(-1, keepdim=True)
    return ids_TJ, weights_TJ


def _sparse_mixed(scores_TE: Tensor, *, per_token: int, jitter: float) -> tuple[Tensor, Tensor]:
    """The best of those that are left, weighed among the ones within twice `jitter` of it, as a
    share of the larger score."""
    left_TE, ids, weights = scores_TE, list[Tensor](), list[Tensor]()
    for _ in range(per_token):
        best_T1, id_T1 = left_TE.max(-1, keepdim=True)
        far_TE = (best_T1 - scores_TE) / scores_TE.abs().clamp(min=best_T1) > 2 * jitter
        near_TE = left_TE.masked_fill(far_TE, -torch.inf).softmax(-1)
        ids.append(id_T1)
        weights.append(near_TE.gather(-1, id_T1))
        left_TE = left_TE.scatter(-1, id_T1, -torch.inf)
    return torch.cat(ids, -1), torch.cat(weights, -1)
