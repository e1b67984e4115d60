"""A launch that is looked up is the one that Triton would have made; no GPU is there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.eager_host import NoGpu, faked, measure
from engine.ops.contract import Norm
from engine.ops.triton import norm

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def test_a_launch_again_gives_the_same_kernel_the_same_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what was compiled for other numbers or addresses is not taken."""
    made = list[tuple[Any, ...]]()
    monkeypatch.setattr(NoGpu, "count_launch", lambda self, *given: made.append(given))
    norm.bound_norm.cache_clear()
    rms = Norm(weight_K=torch.ones(64), eps=1e-6)
    odd = torch.zeros(3 * 64 + 1)[1:].view(3, 64)  # at no multiple of 16
    with faked():
        for x_TK in (torch.zeros(3, 64), torch.zeros(5, 64), odd, torch.zeros(3, 64)):
            norm.normed(x_TK, None, rms, dtype=torch.bfloat16)
    norm.bound_norm.cache_clear()
    first, again, misaligned, last = made
    assert [given[0] for given in made] == [3, 5, 3, 3], "the grid follows the rows"
    for given in (again, last):
        assert given[3:6] == first[3:6], "stream, kernel and how it is packed"
        assert [type(one) for one in given[9:]] == [type(one) for one in first[9:]]
        assert given[14:] == (*first[14:17], given[17], *first[18:])
    assert misaligned[9].data_ptr() % 16
    assert again[9].shape == (5, 64), "its own tensors"


def test_an_eager_forward_is_measured_without_a_gpu() -> None:
    measured = measure(layers=2, num_tokens=20, rounds=2)
    assert measured["launches"] >= 2 * 6 and measured["forward_ms"] > 0
