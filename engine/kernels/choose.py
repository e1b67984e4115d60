"""From logits to tokens on the device: what a GPU runner calls in place of `engine.sampler`.

`shape_logits` first, where any row asks for it; then `choose`; `logprobs` of the logits before
shaping. Nothing waits for the device, and `choose` and `logprobs` fit a CUDA graph; the lists of
`shape_logits` change their length with every step, so it runs outside.
"""

# Shapes: R rows, V vocabulary, N entries of a sparse list, L logprobs.

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.sample import SamplingRows, sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """A value for single tokens of single rows; no (row, id) twice."""

    rows_N: Tensor  # int64
    ids_N: Tensor  # int64
    values_N: Tensor  # float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What changes logits before they are sampled, in this order."""

    repetition: Sparse | None = None
    """Divides a logit above 0 and multiplies one below."""
    malus: Sparse | None = None
    """Subtracted: frequency penalty times count, plus presence penalty."""
    bias: Sparse | None = None
    """Added."""
    bans: Sparse | None = None
    """Becomes -inf; the values do not matter."""


def choose(logits_RV: Tensor, rows: SamplingRows) -> Tensor:
    """Token ids [R] int64, -1 for a row without a finite logit. `logits_RV` float32 or bfloat16.
    A row's token depends on its logits and its sampling alone."""
    return sample(logits_RV, rows)


def shape_logits(logits_RV: Tensor, shaping: Shaping) -> Tensor:
    """A shaped copy, float32 [R, V]. Where bans leave a row nothing they, and what came before,
    are lifted."""
    shaped_RV = logits_RV.to(torch.float32, copy=True)
    if (list_ := shaping.repetition) is not None:
        mine_N = shaped_RV[list_.rows_N, list_.ids_N]
        moved_N = torch.where(mine_N > 0, mine_N / list_.values_N, mine_N * list_.values_N)
        shaped_RV[list_.rows_N, list_.ids_N] = moved_N
    if (list_ := shaping.malus) is not None:
        shaped_RV[list_.rows_N, list_.ids_N] -= list_.values_N
    if (list_ := shaping.bias) is not None:
        shaped_RV[list_.rows_N, list_.ids_N] += list_.values_N
    if (list_ := shaping.bans) is None:
        return shaped_RV
    shaped_RV[list_.rows_N, list_.ids_N] = torch.full_like(list_.values_N, -torch.inf)
    nothing_R1 = ~(shaped_RV > -torch.inf).any(1, keepdim=True)
    return torch.where(nothing_R1, logits_RV.float(), shaped_RV)


def logprobs(logits_RV: Tensor, token_ids_R: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the model's own distribution: float32 [R] of each token (NaN where the token is -1), and
    the `num` most likely as int64 ids and float32 logprobs [R, L], equals by id."""
    scores_RV = torch.nan_to_num(
        logits_RV.float(), nan=-torch.inf, posinf=torch.finfo().max, neginf=-torch.inf
    )
    total_R1 = scores_RV.logsumexp(1, keepdim=True)
    mine_R1 = scores_RV.gather(1, token_ids_R.clamp(min=0)[:, None]) - total_R1
    mine_R = torch.where(token_ids_R < 0, torch.nan, mine_R1[:, 0])
    num = min(num, scores_RV.shape[1])
    ids_RL = (_ordered(scores_RV).topk(num, dim=1).values & 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return mine_R, ids_RL, scores_RV.gather(1, ids_RL) - total_R1


def _ordered(scores_RV: Tensor) -> Tensor:
    """int64 that orders as (score, lower id first) does: the float's bits above the id's."""
    bits_RV = (scores_RV + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    rising_RV = torch.where(bits_RV >= 0, bits_RV, bits_RV ^ 0x7FFF_FFFF)
    ids_V = torch.arange(scores_RV.shape[1], device=scores_RV.device)
    return (rising_RV << 32) | (ids_V ^ 0xFFFF_FFFF)
