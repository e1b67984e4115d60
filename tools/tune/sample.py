"""What is tried of the sampler: parts of a row and their warps, which decide no token."""

# Shapes: R rows, V vocabulary.

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from engine.ops.triton.launch import Launch
from engine.sampling import triton_sample as sample
from engine.sampling.rows import RowRules
from tools.tune import subject
from tools.tune.subject import Subject, noise

NUM_ROWS = 32


def sample_subjects(vocab_size: int) -> Iterator[Subject]:
    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((NUM_ROWS,), value, dtype=dtype, device=subject.DEVICE)

    rows = RowRules(
        temperature_R=column(0.8, torch.float32), top_k_R=column(50, torch.int32),
        top_p_R=column(0.95, torch.float32), min_p_R=column(0.0, torch.float32),
        seed_R=column(1, torch.int64), position_R=torch.arange(NUM_ROWS, device=subject.DEVICE),
    )  # fmt: skip
    logits_RV = noise(NUM_ROWS, vocab_size).float() * 12
    yield Subject(
        kernel="sample",
        shape="any",
        default=sample.DEFAULT,
        candidates=[
            Launch(block_n=tokens, num_warps=warps)
            for tokens, warps in product((1_024, 2_048, 4_096, 8_192), (2, 4, 8))
            if 256 <= tokens // warps <= 1_024
        ],
        run=lambda one: sample.sample_tokens(logits_RV, rows, launch=one),
    )
