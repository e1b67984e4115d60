"""SparseMixer's choice of experts equals that of transformers."""

import importlib
from typing import Any

import pytest
import torch

from engine.models.route import route

SCORES_TE = torch.randn(200, 6, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.3, 2.0])
@pytest.mark.parametrize("shift", [0.0, -4.0, 4.0])
def test_sparse_mixer_weighs_as_transformers_does(jitter: float, shift: float) -> None:
    phimoe: Any = importlib.import_module("transformers.models.phimoe.modeling_phimoe")
    scores_TE = SCORES_TE + shift
    weights_TJ, ids_TJ = phimoe.sparsemixer(scores_TE, jitter, training=False)
    got = route(scores_TE, per_token=2, softmax="sparsemixer", renormalise=False, jitter=jitter)
    assert torch.equal(got[0], ids_TJ)
    torch.testing.assert_close(got[1], weights_TJ)
