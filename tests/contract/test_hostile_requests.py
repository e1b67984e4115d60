"""Whatever a router says to a worker, each request has one ending and no other request notices."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.eventually import eventually
from support.live_service import LiveService, live_service
from support.words import LAYOUT

from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.messages import Failed, Finished, Sampling, Ticket
from protocol.readings import PoolPrompt, ScorePrompt
from tools.make_checkpoint import Shape, make_checkpoint

NEIGHBOURS = {
    "greedy": Sampling(seed=1, max_tokens=48, temperature=0.0, ignore_eos=True),
    "seeded": Sampling(seed=7, max_tokens=48, temperature=0.9, top_p=0.95, ignore_eos=True),
    "penalised": Sampling(seed=9, max_tokens=48, repetition_penalty=1.2, ignore_eos=True),
}
NUMBERS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1e-5, 1e-38, 1e-45, 5e-324, 2.0, -2.0, 1e38, -1e38, 1e300, -1e300,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
NUM_ROUNDS = 12
WHOLE = (0, 1, 2, -1, 20, 2**31, 2**40, 2**63 - 1, -(2**63))
CASES: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1e-38, "top_p": 0.9},
    {"repetition_penalty": 1e-300, "min_p": 1.0, "temperature": 1e300},
    {"temperature": 1e-5, "presence_penalty": -1e300, "top_k": 2**40},
    {"logit_bias": ((3, 3e38), (4, -3e38)), "frequency_penalty": 1e38, "top_p": 1e-300},
    {"min_p": 1e300, "num_logprobs": 20},
)
TICKET = Ticket(
    worker=WorkerId("prefill-0"), epoch=Epoch(1), lease=LeaseId(1), address="tcp://127.0.0.1:9",
    layout=LAYOUT, compat="other", num_tokens=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    path = tmp_path_factory.mktemp("hostile")
    make_checkpoint(path, Shape(context=128))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with live_service(path, token_budget=32, max_running=8) as live:
        yield live
    torch.set_num_threads(before)


def anything(chance: random.Random, vocab_size: int) -> tuple[tuple[int, ...], Sampling, dict]:  # type: ignore[type-arg]
    """Two or three strange values each, so that some are accepted."""
    ids = (0, 1, vocab_size - 1, vocab_size, -1, 2**31)

    def some(values: tuple[Any, ...], most: int) -> tuple[Any, ...]:
        return tuple(chance.choice(values) for _ in range(chance.randrange(most)))

    rule: dict[str, Any] = {"seed": chance.choice(WHOLE), "max_tokens": chance.choice((1, 3, 9))}
    asked: dict[str, Any] = {}
    strange: dict[str, Callable[[], Any]] = {
        **dict.fromkeys(
            ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
             "frequency_penalty"), lambda: chance.choice(NUMBERS),
        ),
        **dict.fromkeys(("top_k", "min_tokens", "max_tokens"), lambda: chance.choice(WHOLE)),
        "num_logprobs": lambda: chance.choice((0, 5, vocab_size, -1, vocab_size + 1)),
        "logit_bias": lambda: tuple(zip(some(ids[:3], 9), some(NUMBERS, 9), strict=False)),
        "stop_token_ids": lambda: some(ids, 4),
        "stop": lambda: some(("", "a", "e" * 70_000, "\ufffd", " "), 3),
        "include_stop": lambda: True, "skip_special_tokens": lambda: False,
        "ignore_eos": lambda: True,
    }  # fmt: skip
    for name in chance.sample(sorted(strange), k=chance.randrange(1, 5)):
        rule[name] = strange[name]()
    if chance.random() < 0.3:
        asked["generated"] = some(ids[:3], 6)
    if chance.random() < 0.1:
        asked["ticket"] = TICKET
    if chance.random() < 0.3:
        first, num_top = chance.choice(WHOLE), chance.choice((0, 5, 128, 129, -1))
        asked["reading"] = chance.choice(
            (
                PoolPrompt(kind="mean"),
                ScorePrompt(num_top=5),
                ScorePrompt(first=first, num_top=num_top),
            )
        )
    if chance.random() < 0.05:
        asked["deadline_s"] = chance.choice(NUMBERS)
    length = chance.choice((0, 1, 5, 40, 127, 128, 5_000))
    prompt = [chance.randrange(vocab_size) for _ in range(length)]
    if prompt and chance.random() < 0.1:
        prompt[-1] = chance.choice(ids)
    return tuple(prompt), Sampling(**rule), asked


def test_no_value_of_any_field_harms_a_neighbour(live: LiveService) -> None:
    chance = random.Random(5)
    prompts = {name: tuple(range(3 + i, 30)) for i, name in enumerate(NEIGHBOURS)}
    for name, rule in NEIGHBOURS.items():
        live.ask(f"{name} alone", prompts[name], rule)
        eventually(live.is_whole, within_s=60)
    asked: list[str] = []
    for number in range(NUM_ROUNDS):
        for name, rule in NEIGHBOURS.items():
            live.ask(f"{name} {number}", prompts[name], rule)
        for one in range(40):
            asked.append(f"odd {number}.{one}")
            prompt, rule, more = anything(chance, live.vocab_size)
            live.ask(asked[-1], prompt, rule, **more)
        eventually(live.is_whole, within_s=60)
    endings = live.endings()
    assert all(len(endings[name]) == 1 for name in asked)  # type: ignore[index]
    for name in NEIGHBOURS:
        for number in range(NUM_ROUNDS):
            (end,) = endings[f"{name} {number}"]  # type: ignore[index]
            assert isinstance(end, Finished)
            assert live.tokens(f"{name} {number}") == live.tokens(f"{name} alone")
    kinds = {
        end.code if isinstance(end, Failed) else type(end).__name__
        for name in asked
        for end in endings[name]  # type: ignore[index]
    }
    assert {"Finished", "invalid", "too_long"} <= kinds
    assert not live.broken


def test_what_a_router_may_say_never_fails_inside(live: LiveService) -> None:
    """Of finite numbers within a vocabulary every one has an answer, the cases of the field too."""
    for number, odd in enumerate(CASES):
        rule = Sampling(seed=-(2**63), max_tokens=12, ignore_eos=True, **odd)
        live.ask(f"case {number}", (5, 6, 7), rule)
    eventually(live.is_whole, within_s=60)
    for number in range(len(CASES)):
        (end,) = live.endings()[f"case {number}"]  # type: ignore[index]
        assert isinstance(end, Finished) and end.num_tokens == 12
