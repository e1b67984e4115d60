"""Log probabilities of chosen tokens and of the most likely, on the device of the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.batch import Chunk

_ID = 0xFFFF_FFFF


def logprobs(logits_AV: Tensor, tokens_A: Tensor, *, num_top: int) -> Tensor:
    """float64 [A, 1 + 2 N]: the logprob of the token, the ids of the N most likely, theirs; of
    the model's own distribution, as `engine.sampling.sampler`, equals by id. `logits_AV`
    float32; every id is a float64 exactly."""
    most = torch.finfo(torch.float32).max
    scores_AV = logits_AV.nan_to_num(nan=-torch.inf, posinf=most, neginf=-torch.inf)
    rows_AV = scores_AV.double()
    total_A1 = rows_AV.logsumexp(dim=1, keepdim=True)
    chosen_A1 = rows_AV.gather(1, tokens_A.clamp(min=0)[:, None]) - total_A1
    best_AN = _ordered(scores_AV).topk(min(num_top, rows_AV.shape[1]), dim=1).values
    ids_AN = (best_AN & _ID) ^ _ID
    best_AN = rows_AV.gather(1, ids_AN) - total_A1
    return torch.cat((chosen_A1, ids_AN.double(), best_AN), dim=1)


def _ordered(scores_AV: Tensor) -> Tensor:
    """int64 that orders as (score, lower id first) does: the float's bits above the id's."""
    bits_AV = (scores_AV + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    rising_AV = torch.where(bits_AV >= 0, bits_AV, bits_AV ^ 0x7FFF_FFFF)
    ids_V = torch.arange(scores_AV.shape[1], device=scores_AV.device)
    return (rising_AV << 32) | (ids_V ^ _ID)


def rows_with_logprobs(chunks: Sequence[Chunk]) -> dict[int, int]:
    """Row and how many of the most likely it asks for, of those that ask."""
    return {
        row: chunk.sampling.num_logprobs
        for row, chunk in enumerate(chunks)
        if chunk.sampling is not None and chunk.sampling.num_logprobs is not None
    }
