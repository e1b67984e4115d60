"""How likely given tokens are, by rows of logits on any device.

By the model's own distribution, as `engine.sampling.rows.logprobs`. Looks at what it is given at
once: whoever has many rows brings them in slabs.
"""

# Shapes: S rows, N most likely tokens, V vocabulary.

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.sampling.rows import logprobs, ordered
from protocol.readings import TokenScore


def scores(logits_SV: Tensor, targets_S: Tensor, *, num_top: int) -> Tensor:
    """float64 [S, 2 + 2 N]: the rank of each row's target, then as `logprobs`. `logits_SV`
    float32, `targets_S` int64; every number is a float64 exactly."""
    most = torch.finfo(torch.float32).max
    cleaned_SV = logits_SV.nan_to_num(nan=-torch.inf, posinf=most, neginf=-torch.inf)
    order_SV = ordered(cleaned_SV)
    before_S = (order_SV > order_SV.gather(1, targets_S[:, None])).sum(dim=1)
    reported = logprobs(logits_SV, targets_S, num_top=num_top)
    return torch.cat((before_S[:, None].double() + 1, reported), dim=1)


def as_scores(rows: Sequence[Sequence[float]], targets: Sequence[int]) -> tuple[TokenScore, ...]:
    """What `scores` answered, on the host, as values."""
    return tuple(_as_score(row, target) for row, target in zip(rows, targets, strict=True))


def _as_score(row: Sequence[float], target: int) -> TokenScore:
    rank, logprob, *top = row
    num_top = len(top) // 2
    pairs = zip(map(int, top[:num_top]), map(_known, top[num_top:]), strict=True)
    return TokenScore(token_id=target, logprob=_known(logprob), rank=int(rank), top=tuple(pairs))


def _known(logprob: float) -> float:
    """Of a row without a finite logit nothing is likely."""
    return logprob if logprob == logprob else -torch.inf
