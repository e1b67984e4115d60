"""A launch that is looked up is the one that Triton would have made; no GPU is there."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from support.gpu import ENVIRONMENT

from bench.gpu.eager_host import NoGpu, faked, measure
from engine.ops.contract import Norm
from engine.ops.triton import norm
from engine.ops.triton.bound import launched_alike

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


@pytest.mark.long
def test_cuda_is_given_by_a_launch_again_what_triton_gives_it(tmp_path: Path) -> None:
    """Through Triton's own launcher, of the version that is installed."""
    environment = {**ENVIRONMENT, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "support.launcher_calls", str(tmp_path)],
        env=environment, capture_output=True, timeout=240, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, again, ordinary = json.loads(done.stdout)
    own = 8 + 2  # the result, in other memory each time
    assert first[0] == 3 and again[0] == 5
    assert again[:own] == ordinary[:own] and again[own + 1 :] == ordinary[own + 1 :]


@pytest.mark.parametrize(
    ("version", "looked_up"),
    [("3.5.1", 0), ("3.6.0", 1), ("3.9.1+git0", 1), ("3.10.0", 0), ("4.0.0", 0)],
)
def test_under_a_triton_that_is_not_known_every_launch_is_an_ordinary_one(
    version: str, looked_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary, again = list[object](), list[object]()
    made = SimpleNamespace(
        run=lambda *given: again.append(given), function=1, packed_metadata=(4, 1, 0)
    )

    def run(*arguments: object, grid: object, warmup: bool, **named: object) -> object:
        ordinary.append(grid)
        return made

    monkeypatch.setattr(norm.norm_kernel, "run", run)
    monkeypatch.setattr(triton, "__version__", version)
    norm.bound_norm.cache_clear()
    rms = Norm(weight_K=torch.ones(64), eps=1e-6)
    with faked():
        for _ in range(2):
            norm.normed(torch.zeros(3, 64), None, rms, dtype=torch.bfloat16)
    norm.bound_norm.cache_clear()
    assert (len(ordinary), len(again)) == (2 - looked_up, looked_up)


def test_the_triton_that_is_installed_is_known() -> None:
    assert launched_alike(triton.__version__)
