"""What a device reports of the tokens it chose, beside `engine.sampling.sampler`."""

# Shapes: A rows, V vocabulary.

import math

import pytest
import torch
from support.forwards import chunk
from torch import Tensor

from engine.sampling.rows import NO_TOKEN, logprobs
from engine.sampling.sampler import sample_token
from protocol.messages import Sampling

V = 40


def rows(*seeds: int) -> Tensor:
    return torch.stack(
        [torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3 for seed in seeds]
    )


def test_logprobs_are_the_samplers() -> None:
    logits_AV = rows(1, 2)
    logits_AV[1, 3] = torch.nan
    asked = chunk([1], table=[0], sampling=Sampling(seed=3, max_tokens=1, num_logprobs=5))
    tokens = [sample_token(row, asked, eos_token_ids=()) for row in logits_AV.numpy()]
    ids_A = torch.tensor([token.token_id for token in tokens if token is not None])
    for token, report in zip(tokens, logprobs(logits_AV, ids_A, num_top=5).tolist(), strict=True):
        assert token is not None
        assert report[0] == pytest.approx(token.logprob, abs=1e-6)
        assert report[1:6] == [token_id for token_id, _ in token.top]
        assert report[6:] == pytest.approx([value for _, value in token.top], abs=1e-6)


def test_equal_logprobs_come_by_id_and_minus_zero_equals_zero() -> None:
    logits_AV = torch.tensor([[0.0, 1.0, -0.0, 1.0, -2.0, 0.0]])
    (report,) = logprobs(logits_AV, torch.tensor([0]), num_top=9).tolist()
    assert report[1:7] == [1, 3, 0, 2, 5, 4]


def test_a_row_without_a_finite_logit_reports_no_number() -> None:
    """Its sequence has no token: nobody reads the report."""
    (report,) = logprobs(
        torch.full((1, V), -torch.inf), torch.tensor([NO_TOKEN]), num_top=1
    ).tolist()
    assert math.isnan(report[0])
