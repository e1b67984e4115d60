"""The host's twin of the device's sampler, row by row, and its oracle."""

import torch
from torch import Tensor

from engine.batch import Chunk, SequenceId
from engine.sampling.rows import NO_TOKEN, RowRules
from engine.sampling.sampler import sample_one
from protocol.messages import Sampling


def choose_on_host(logits_RV: Tensor, params: RowRules, /) -> Tensor:
    """Row by row by `engine.sampling.sampler`."""
    rows_RV = logits_RV.numpy()
    tokens = []
    for row in range(len(logits_RV)):
        rule = Sampling(
            seed=int(params.seed_R[row]), max_tokens=1,
            temperature=float(params.temperature_R[row]), top_k=int(params.top_k_R[row]),
            top_p=float(params.top_p_R[row]), min_p=float(params.min_p_R[row]),
        )  # fmt: skip
        chunk = Chunk(
            sequence=SequenceId("row"), token_ids=(), start=int(params.position_R[row]),
            block_table=(), sampling=rule, prompt_ids=(), outputs=(),
        )  # fmt: skip
        chosen = sample_one(rows_RV[row], chunk, eos_token_ids=())
        tokens.append(NO_TOKEN if chosen is None else chosen.token_id)
    return torch.tensor(tokens, dtype=torch.int64)
