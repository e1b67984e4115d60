"""What was seen in prompts, by the loop in C and by its twin."""

import random
from collections.abc import Iterator

import pytest

from router.prefix.native.library import kernels
from router.prefix.seen import SeenBlocks


@pytest.fixture(params=["C", "Python"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "Python":
        monkeypatch.setattr("router.prefix.seen.kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no C compiler")
    yield request.param


def prompt(num_blocks: int, *, seed: int) -> bytes:
    return random.Random(seed).randbytes(16 * num_blocks)


def test_the_beginning_that_an_earlier_prompt_had_was_seen(twin: str) -> None:
    seen, one = SeenBlocks(max_blocks=1024), prompt(20, seed=1)
    assert seen.see_prompt(one) == 0
    assert seen.see_prompt(one[: 16 * 12] + prompt(8, seed=2)) == 12
    assert seen.see_prompt(prompt(3, seed=3) + one) == 0
    assert seen.see_prompt(b"") == 0


def test_what_was_seen_long_ago_is_forgotten_and_what_comes_again_is_not(twin: str) -> None:
    seen, old, kept = SeenBlocks(max_blocks=1024), prompt(10, seed=1), prompt(10, seed=2)
    seen.see_prompt(old)
    for seed in range(3, 63):
        seen.see_prompt(prompt(50, seed=seed))
        assert seen.see_prompt(kept) == (10 if seed > 3 else 0)
    assert seen.see_prompt(old) == 0


def test_hardly_any_new_block_is_taken_for_a_seen_one(twin: str) -> None:
    """Both filters full: 1 in 500 by the formula; 3 in 500 would be something else."""
    seen = SeenBlocks(max_blocks=1 << 14)
    for seed in range(2 << 14 >> 6):
        seen.see_prompt(prompt(64, seed=seed))
    num_wrong = sum(seen.see_prompt(prompt(1, seed=seed)) for seed in range(10_000, 14_000))
    assert num_wrong <= 24
