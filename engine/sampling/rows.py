"""Rows of logits on a device: the rules that each is sampled by, what samples them, their logprobs.

On a GPU that is `engine.sampling.triton_sample.sample_tokens`; `sample_on_host` stands for it
elsewhere, and is its oracle.
"""

# Shapes: R rows, A of them with logprobs, N most likely tokens, V vocabulary.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Chunk, SequenceId
from engine.sampling.sampler import sample_token
from protocol.messages import Sampling

NO_TOKEN = -1
"""Of a row without a finite logit."""
_ID = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """How each row is sampled, on the device. `top_k_R` 0: all; `seed_R` the seed's 64 bits."""

    temperature_R: Tensor  # float32
    top_k_R: Tensor  # int32
    top_p_R: Tensor  # float32
    min_p_R: Tensor  # float32
    seed_R: Tensor  # int64
    position_R: Tensor  # int64


class TokenSampler(Protocol):
    def __call__(self, logits_RV: Tensor, rules: RowRules, /) -> Tensor:
        """int64 [R] on the device of the logits, which are float32; NO_TOKEN where none is
        finite."""
        ...


def sample_on_host(logits_RV: Tensor, rules: RowRules, /) -> Tensor:
    """Row by row by `engine.sampling.sampler`."""
    rows_RV = logits_RV.numpy()
    tokens = []
    for row in range(len(logits_RV)):
        rule = Sampling(
            seed=int(rules.seed_R[row]), max_tokens=1,
            temperature=float(rules.temperature_R[row]), top_k=int(rules.top_k_R[row]),
            top_p=float(rules.top_p_R[row]), min_p=float(rules.min_p_R[row]),
        )  # fmt: skip
        chunk = Chunk(
            sequence=SequenceId("row"), token_ids=(), start=int(rules.position_R[row]),
            block_table=(), sampling=rule, prompt_ids=(), outputs=(),
        )  # fmt: skip
        chosen = sample_token(rows_RV[row], chunk, eos_token_ids=())
        tokens.append(NO_TOKEN if chosen is None else chosen.token_id)
    return torch.tensor(tokens, dtype=torch.int64)


def logprobs(logits_AV: Tensor, tokens_A: Tensor, *, num_top: int) -> Tensor:
    """float64 [A, 1 + 2 N]: the logprob of the token, the ids of the N most likely, theirs; of
    the model's own distribution, as `engine.sampling.sampler`, equals by id. `logits_AV`
    float32; every id is a float64 exactly."""
    most = torch.finfo(torch.float32).max
    scores_AV = logits_AV.nan_to_num(nan=-torch.inf, posinf=most, neginf=-torch.inf)
    rows_AV = scores_AV.double()
    total_A1 = rows_AV.logsumexp(dim=1, keepdim=True)
    chosen_A1 = rows_AV.gather(1, tokens_A.clamp(min=0)[:, None]) - total_A1
    ids_AN, values_AN = most_likely(scores_AV, num_top)
    return torch.cat((chosen_A1, ids_AN.double(), values_AN.double() - total_A1), dim=1)


def most_likely(scores_AV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Ids [A, N] and scores of the `num` largest, or of all, best first, equals by id. `scores_AV`
    float32 without NaN."""
    if not num:
        none_A0 = scores_AV[:, :0]
        return none_A0.long(), none_A0
    best_AN = _ordered(scores_AV).topk(min(num, scores_AV.shape[1]), dim=1).values
    ids_AN = (best_AN & _ID) ^ _ID
    return ids_AN, scores_AV.gather(1, ids_AN)


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
