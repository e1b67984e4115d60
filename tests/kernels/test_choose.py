"""What surrounds the sampling kernel on a device, beside `engine.sampler` on CPU tensors."""

# Shapes: R rows, V vocabulary.

import numpy as np
import pytest
import torch
from support.forwards import chunk
from torch import Tensor

from engine.kernels.choose import Shaping, Sparse, logprobs, shape_logits
from engine.sampler import sample_one
from protocol.messages import Sampling

V = 40


def rows(*seeds: int) -> Tensor:
    return torch.stack(
        [torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3 for seed in seeds]
    )


def sparse(*entries: tuple[int, int, float]) -> Sparse:
    rows_N, ids_N, values_N = zip(*entries, strict=True)
    return Sparse(
        rows_N=torch.tensor(rows_N), ids_N=torch.tensor(ids_N), values_N=torch.tensor(values_N)
    )


def test_penalties_bias_and_bans_come_in_the_samplers_order() -> None:
    """Row 1 has them all on token 7; row 0 nothing."""
    logits_RV = rows(1, 2)
    shaping = Shaping(
        repetition=sparse((1, 7, 1.5), (1, 3, 2.0)),
        malus=sparse((1, 7, 0.25)),
        bias=sparse((1, 7, 0.125), (1, 8, -4.0)),
        bans=sparse((1, 9, 0.0)),
    )
    expected_RV = logits_RV.clone()
    for token, penalty in ((7, 1.5), (3, 2.0)):
        mine = expected_RV[1, token]
        expected_RV[1, token] = mine / penalty if mine > 0 else mine * penalty
    expected_RV[1, 7] += 0.125 - 0.25
    expected_RV[1, 8] -= 4
    expected_RV[1, 9] = -torch.inf
    before = logits_RV.clone()
    torch.testing.assert_close(shape_logits(logits_RV, shaping), expected_RV)
    assert logits_RV.equal(before), "logprobs are of what the model said"
    assert shape_logits(logits_RV, Shaping()).equal(logits_RV)


def test_shaped_logits_choose_what_the_sampler_chooses() -> None:
    logits_RV = rows(4)
    sampling = Sampling(
        seed=0, max_tokens=9, temperature=0.0, repetition_penalty=1.7, presence_penalty=0.5,
        frequency_penalty=0.75, logit_bias=((5, 6.0), (6, 6.5)), min_tokens=9, stop_token_ids=(6,),
    )  # fmt: skip
    best = int(logits_RV.argmax())
    outputs = (best, best, 11)
    asked = chunk([1], table=[0], sampling=sampling, prompt_ids=(12,), outputs=outputs)
    token = sample_one(logits_RV[0].numpy(), asked, eos_token_ids=())
    shaping = Shaping(
        repetition=sparse((0, best, 1.7), (0, 11, 1.7), (0, 12, 1.7)),
        malus=sparse((0, best, 2.0), (0, 11, 1.25)),
        bias=sparse((0, 5, 6.0), (0, 6, 6.5)),
        bans=sparse((0, 6, 0.0)),
    )
    assert token is not None
    assert token.token_id == int(shape_logits(logits_RV, shaping).argmax())


def test_bans_on_everything_are_lifted_in_their_row_alone() -> None:
    logits_RV = rows(1, 2)
    everything = [(0, token, 0.0) for token in range(V)]
    shaped_RV = shape_logits(logits_RV, Shaping(bans=sparse(*everything, (1, 0, 0.0))))
    assert shaped_RV[0].equal(logits_RV[0])
    assert shaped_RV[1, 0] == -torch.inf
    assert shaped_RV[1, 1:].equal(logits_RV[1, 1:])


def test_logprobs_are_the_samplers() -> None:
    logits_RV = rows(1, 2)
    logits_RV[1, 3] = torch.nan
    asked = chunk([1], table=[0], sampling=Sampling(seed=3, max_tokens=1, num_logprobs=5))
    tokens = [sample_one(row, asked, eos_token_ids=()) for row in logits_RV.numpy()]
    ids_R = torch.tensor([token.token_id for token in tokens if token is not None])
    mine_R, top_ids_RL, top_RL = logprobs(logits_RV, ids_R, 5)
    for r, token in enumerate(tokens):
        assert token is not None
        assert float(mine_R[r]) == pytest.approx(token.logprob, abs=1e-5)
        assert top_ids_RL[r].tolist() == [i for i, _ in token.top]
        assert top_RL[r].tolist() == pytest.approx([p for _, p in token.top], abs=1e-5)


def test_equal_logprobs_come_by_id_and_minus_zero_equals_zero() -> None:
    logits_RV = torch.tensor([[0.0, 1.0, -0.0, 1.0, -2.0, 0.0]])
    _, ids_RL, _ = logprobs(logits_RV, torch.tensor([0]), 9)
    assert ids_RL.tolist() == [[1, 3, 0, 2, 5, 4]]


def test_a_row_without_a_token_has_no_logprob() -> None:
    logits_RV = torch.full((1, V), -torch.inf)
    mine_R, _, _ = logprobs(logits_RV, torch.tensor([-1]), 1)
    assert np.isnan(mine_R.numpy()).all()
