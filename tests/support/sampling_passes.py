"""How often the sampling kernels read a row, counted by what Triton's interpreter loads; and that
neither parts nor room for packed tokens decide any token."""

# Shapes: R rows, V vocabulary.

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from support.kernel_cases import BF16, F32, INTERPRETED, check, noise
from support.sampling_checks import rows_of, twin_tokens
from torch import Tensor

from engine.ops.triton.launch import Launch
from engine.sampling import triton_bracket, triton_sample
from protocol.messages import Sampling

FILTERED: tuple[dict[str, float], ...] = (
    {"top_p": 0.95}, {"top_k": 50}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.5, "temperature": 4.0},
    {"top_k": 900, "top_p": 0.9, "min_p": 1e-4}, {"top_k": 40, "top_p": 0.95, "temperature": 0.1},
)  # fmt: skip


def settings_of(*filters: dict[str, float]) -> list[Sampling]:
    return [Sampling(seed=r, max_tokens=1, **one) for r, one in enumerate(filters)]  # type: ignore[arg-type]


def chosen_as_the_twin(logits_RV: Tensor, settings: list[Sampling], launch: Launch) -> None:
    positions = list(range(3, 3 + len(settings)))
    got = triton_sample.sample_tokens(logits_RV, rows_of(settings, positions), launch=launch)
    assert got.tolist() == twin_tokens(logits_RV, settings, positions)


@contextmanager
def room_for(capacity: int) -> Iterator[None]:
    before, triton_bracket.CAPACITY = triton_bracket.CAPACITY, capacity
    try:
        yield
    finally:
        triton_bracket.CAPACITY = before


@check
def parts_and_room_decide_no_token() -> None:
    """Rows that need the second count, rows that are searched themselves, edges of equal scores."""
    settings = settings_of(*FILTERED[:4], {"top_k": 300, "top_p": 0.7})
    wide_RV = noise(len(settings), 701, seed=2) * 4
    for logits_RV in (wide_RV, (wide_RV / 16).to(BF16)):
        for tokens, capacity in ((256, 8_192), (1_024, 60)):
            with room_for(capacity):
                chosen_as_the_twin(logits_RV, settings, Launch(block_n=tokens, num_warps=4))


@contextmanager
def loads_of(tensor: Tensor) -> Iterator[list[int]]:
    """How many of its elements are loaded meanwhile."""
    from triton.runtime.interpreter import InterpreterBuilder

    start, loaded = tensor.data_ptr(), [0]
    end, before = start + tensor.nbytes, InterpreterBuilder.create_masked_load

    def counting(self: Any, ptrs: Any, mask: Any, *others: Any) -> Any:
        at = np.asarray(ptrs.data, dtype=np.uint64)
        loaded[0] += int((np.asarray(mask.data) & (at >= start) & (at < end)).sum())
        return before(self, ptrs, mask, *others)

    InterpreterBuilder.create_masked_load = counting
    try:
        yield loaded
    finally:
        InterpreterBuilder.create_masked_load = before


def passes(logits_RV: Tensor, one: dict[str, float], *, capacity: int = 8_192) -> float:
    settings = settings_of(one)
    with room_for(capacity), loads_of(logits_RV) as loaded:
        chosen_as_the_twin(logits_RV, settings, triton_sample.DEFAULT)
    return loaded[0] / logits_RV.numel()


def few_passes() -> None:
    """A row is read once for its best, once to draw; with filters at most twice more, and once
    more where more tokens than there is room for are all alike. Whatever top_k is, and however
    flat the row."""
    logits_RV = noise(1, 2_101).to(F32) * 3
    assert passes(logits_RV, {"temperature": 0.0}) == 1
    assert passes(logits_RV, {}) == passes(logits_RV, {"min_p": 0.1}) == 2
    assert all(passes(logits_RV, one) <= 3 for one in FILTERED)
    assert all(passes(logits_RV, one, capacity=200) <= 4 for one in (FILTERED[0], FILTERED[3]))
    wide: tuple[dict[str, float], ...] = (
        {"top_k": 1_500, "top_p": 0.6}, {"top_k": 1_000, "top_p": 0.999, "temperature": 3.0},
        {"top_k": 1_900, "top_p": 0.99, "temperature": 1e4}, {"top_p": 0.5, "temperature": 1e6},
        {"top_k": 700, "temperature": 1e9}, {"top_k": 1_999, "top_p": 0.1, "temperature": 50.0},
    )  # fmt: skip
    assert all(passes(logits_RV, one, capacity=200) <= 4 for one in wide)
    equal_RV = torch.ones(1, 2_101)
    assert all(passes(equal_RV, one, capacity=200) <= 5 for one in (FILTERED[0], FILTERED[2]))


if INTERPRETED:
    check(few_passes)
