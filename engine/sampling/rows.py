"""Rows of logits on a device: the rules that each is sampled by, and what samples them.

On a GPU that is `engine.sampling.triton_sample.sample_tokens`; `sample_on_host` stands for it
elsewhere, and is its oracle.
"""

# Shapes: R rows, V vocabulary.

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Chunk, SequenceId
from engine.sampling.sampler import sample_token
from protocol.messages import Sampling

NO_TOKEN = -1
"""Of a row without a finite logit."""


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
