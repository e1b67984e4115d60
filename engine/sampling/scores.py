"""How likely given tokens are, by rows of logits on any device.

By the model's own distribution, as `engine.sampling.rows.logprobs`, whose float64 would take three
times as long over every row of a prompt: exponents are float32 here, their sum float64. Looks at
what it is given at once: whoever has many rows brings them in slabs.
"""

# Shapes: S rows, N most likely tokens, V vocabulary.

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.sampling.rows import most_likely
from protocol.readings import TokenScore


def scores(logits_SV: Tensor, targets_S: Tensor, *, num_top: int) -> Tensor:
    """float64 [S, 2 + 2 N]: rank and logprob of each row's target, the ids of the N most likely,
    their logprobs; every number is a float64 exactly. `logits_SV` float32 and overwritten,
    `targets_S` int64."""
    most = torch.finfo(torch.float32).max
    logits_SV = logits_SV.nan_to_num_(nan=-torch.inf, posinf=most, neginf=-torch.inf)
    target_S1 = logits_SV.gather(1, targets_S[:, None])
    ids_SN, values_SN = most_likely(logits_SV, num_top)
    best_S1 = logits_SV.amax(dim=1, keepdim=True)
    sum_S1 = (logits_SV - best_S1).exp_().sum(dim=1, keepdim=True, dtype=torch.float64)
    total_S1 = best_S1.double() + sum_S1.log()
    return torch.cat(
        (
            _ranks(logits_SV, target_S1, targets_S).double(),
            target_S1.double() - total_S1,
            ids_SN.double(),
            values_SN.double() - total_S1,
        ),
        dim=1,
    )


def as_scores(rows: Sequence[Sequence[float]], targets: Sequence[int]) -> tuple[TokenScore, ...]:
    """What `scores` answered, on the host, as values."""
    return tuple(_as_score(row, target) for row, target in zip(rows, targets, strict=True))


def _ranks(logits_SV: Tensor, target_S1: Tensor, targets_S: Tensor) -> Tensor:
    """[S, 1]; equals by id."""
    likelier_S1 = (logits_SV > target_S1).sum(dim=1, keepdim=True)
    ids_V = torch.arange(logits_SV.shape[1], device=logits_SV.device)
    equal_SV = (logits_SV == target_S1).logical_and_(ids_V < targets_S[:, None])
    return likelier_S1 + equal_SV.sum(dim=1, keepdim=True) + 1


def _as_score(row: Sequence[float], target: int) -> TokenScore:
    rank, logprob, *top = row
    num_top = len(top) // 2
    pairs = zip(map(int, top[:num_top]), map(_known, top[num_top:]), strict=True)
    return TokenScore(token_id=target, logprob=_known(logprob), rank=int(rank), top=tuple(pairs))


def _known(logprob: float) -> float:
    """Of a row without a finite logit nothing is likely."""
    return logprob if logprob == logprob else -torch.inf
