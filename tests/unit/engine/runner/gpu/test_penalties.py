"""Masks, penalties and bans are written on the device, and never wait for it."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from support.forwards import GREEDY, chunk
from support.shaped_rows import penalties_for, shaped_on_device
from torch.utils._python_dispatch import TorchDispatchMode

from engine.sampling.grammar import AllowedTokens
from engine.sampling.sampler import biases
from protocol.messages import Sampling


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the shapes of what is written by index."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if "index_put" in str(func):
            self.shapes.append(tuple(args[2].shape))
        return func(*args, **(kwargs or {}))


def test_bans_are_written_from_the_device_because_a_number_would_be_copied_with_a_wait() -> None:
    rule = Sampling(seed=0, max_tokens=9, min_tokens=5, stop_token_ids=(1, 3))
    with Written() as written:
        shaped_RV = shaped_on_device(
            torch.zeros(1, 5), [chunk([9], table=[0], sampling=rule)], eos_token_ids=(2,)
        )
    assert written.shapes == []
    assert shaped_RV.tolist() == [[0, -math.inf, -math.inf, -math.inf, 0]]


def test_a_mask_leaves_its_row_what_it_allows_and_other_rows_alone() -> None:
    free = chunk([9], table=[0], sampling=GREEDY)
    held = msgspec.structs.replace(free, allowed=AllowedTokens.of((1, 3)))
    logits_RV = torch.arange(10.0).view(2, 5)
    shaped_RV = shaped_on_device(logits_RV, [free, held])
    assert shaped_RV.tolist() == [[0, 1, 2, 3, 4], [-math.inf, 6, -math.inf, 8, -math.inf]]
    assert logits_RV[1, 0] == 5
    assert shaped_on_device(logits_RV, [free]) is logits_RV


def test_a_ban_that_leaves_nothing_of_what_is_allowed_is_lifted() -> None:
    rule = Sampling(seed=0, max_tokens=9, min_tokens=5, stop_token_ids=(1, 3))
    held = chunk([9], table=[0], sampling=rule)
    held = msgspec.structs.replace(held, allowed=AllowedTokens.of((1, 3)))
    shaped_RV = shaped_on_device(torch.zeros(1, 5), [held])
    assert shaped_RV.tolist() == [[-math.inf, 0, -math.inf, 0, -math.inf]]


def test_a_bias_is_made_once_for_each_sequence_and_anew_for_another_that_has_its_name() -> None:
    """Making one of 300 tokens takes far longer than sending it."""
    penalties = penalties_for(5, max_rows=1)
    one, other = (Sampling(seed=0, max_tokens=9, logit_bias=((1, by), (1, 1.0))) for by in (2, 5))

    def biased(rule: Sampling) -> list[float]:
        planned = penalties.plan([chunk([9], table=[0], sampling=rule)])
        row: list[float] = penalties.penalise_rows(torch.zeros(1, 5), planned)[0][0].tolist()
        return row

    with pytest.MonkeyPatch.context() as patch:
        made: list[Sampling] = []

        def counted(rule: Sampling) -> dict[int, float]:
            made.append(rule)
            return biases(rule)

        patch.setattr("engine.runner.gpu.penalties.biases", counted)
        assert biased(one) == biased(one) == [0, 3, 0, 0, 0]
        assert made == [one]
        assert biased(other) == [0, 6, 0, 0, 0]
