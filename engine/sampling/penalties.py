"""Repetition, frequency and presence penalties of rows of logits, on any device, by counts of their
tokens that lie there.

The twin of `engine.sampling.triton_penalties`, which does it on a GPU.
"""

# Shapes: R rows of logits, A of them penalised, P rows of counts, V vocabulary.

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.sampling.sampler import MOST

IN_PROMPT = 1 << 30
"""Of a count: the prompt holds the token. Below it, how often the outputs do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyRules:
    """Which rows are penalised, and how, on the device."""

    rows_A: Tensor  # int64, none twice
    places_A: Tensor  # int64, the row of counts of each
    repetition_A: Tensor  # float32
    frequency_A: Tensor  # float64, as the next: their product with a count is rounded once
    presence_A: Tensor  # float64


class ScorePenaliser(Protocol):
    def __call__(self, logits_RV: Tensor, counts_PV: Tensor, rules: PenaltyRules, /) -> None:
        """Changes float32 logits in place by int32 counts, as `engine.sampling.sampler` says: of a
        token that prompt or outputs hold a positive score is divided by the repetition penalty
        and a negative one multiplied; then of one that the outputs hold `frequency x count +
        presence` is taken off. What is -inf or NaN stays; what is finite stays finite."""


def penalise(logits_RV: Tensor, counts_PV: Tensor, rules: PenaltyRules, /) -> None:
    counts_AV = counts_PV[rules.places_A]
    outputs_AV = counts_AV & (IN_PROMPT - 1)
    held_AV, before_AV = counts_AV > 0, logits_RV[rules.rows_A]
    score_AV = before_AV.clamp(max=MOST)
    factor_A1 = rules.repetition_A[:, None]
    repeated_AV = torch.where(score_AV > 0, score_AV / factor_A1, score_AV * factor_A1)
    score_AV = _changed(score_AV, repeated_AV, held_AV)
    malus_AV = rules.frequency_A[:, None] * outputs_AV.double() + rules.presence_A[:, None]
    lowered_AV = score_AV - malus_AV.clamp(-MOST, MOST).float()
    score_AV = _changed(score_AV, lowered_AV, outputs_AV > 0)
    logits_RV[rules.rows_A] = torch.where(held_AV, score_AV, before_AV)


def _changed(score_AV: Tensor, changed_AV: Tensor, where_AV: Tensor) -> Tensor:
    where_AV = where_AV & (score_AV > -torch.inf)
    return torch.where(where_AV, changed_AV.clamp(-MOST, MOST), score_AV)
