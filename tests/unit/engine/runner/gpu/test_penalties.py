"""Masks, penalties and bans are written on the device, and never wait for it."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from support.forwards import GREEDY, chunk
from support.host_device import HostDevice
from torch.utils._python_dispatch import TorchDispatchMode

from engine.runner.gpu.penalties import penalised, penalties_of
from engine.sampling.grammar import AllowedTokens
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
    penalties = penalties_of(
        [chunk([9], table=[0], sampling=rule)], eos_token_ids=(2,), vocab_size=5
    )
    with Written() as written:
        shaped_RV = penalised(torch.zeros(1, 5), penalties, HostDevice())
    assert written.shapes == [(3,)]
    assert shaped_RV.tolist() == [[0, -math.inf, -math.inf, -math.inf, 0]]


def test_a_mask_leaves_its_row_what_it_allows_and_other_rows_alone() -> None:
    free = chunk([9], table=[0], sampling=GREEDY)
    held = msgspec.structs.replace(free, allowed=AllowedTokens.of((1, 3)))
    penalties = penalties_of([free, held], eos_token_ids=(), vocab_size=5)
    logits_RV = torch.arange(10.0).view(2, 5)
    shaped_RV = penalised(logits_RV, penalties, HostDevice())
    assert shaped_RV.tolist() == [[0, 1, 2, 3, 4], [-math.inf, 6, -math.inf, 8, -math.inf]]
    assert logits_RV[1, 0] == 5
    untouched = penalties_of([free], eos_token_ids=(), vocab_size=5)
    assert penalised(logits_RV, untouched, HostDevice()) is logits_RV


def test_a_ban_that_leaves_nothing_of_what_is_allowed_is_lifted() -> None:
    rule = Sampling(seed=0, max_tokens=9, min_tokens=5, stop_token_ids=(1, 3))
    held = chunk([9], table=[0], sampling=rule)
    held = msgspec.structs.replace(held, allowed=AllowedTokens.of((1, 3)))
    penalties = penalties_of([held], eos_token_ids=(), vocab_size=5)
    shaped_RV = penalised(torch.zeros(1, 5), penalties, HostDevice())
    assert shaped_RV.tolist() == [[-math.inf, 0, -math.inf, 0, -math.inf]]
