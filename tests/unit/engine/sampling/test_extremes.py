"""Whatever a request asks for, a row with a finite logit has a token, the same by every path, and
one that float64 calls right within the error of float32."""

# Shapes: R rows, V vocabulary, N tokens.

import math
import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.forwards import chunk
from support.shaped_rows import shaped_on_device

from engine.batch import Chunk
from engine.ops.philox import gumbel, words
from engine.runner.gpu.arrays import step_arrays
from engine.sampling.grammar import AllowedTokens
from engine.sampling.rows import NO_TOKEN, RowRules, sample_on_host
from engine.sampling.sampler import GREEDY_BELOW, MOST, sample_tokens
from protocol.layout import KvLayout
from protocol.messages import Sampling

V = 600
EOS = (7, 8)
LAYOUT = KvLayout(num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=16, dtype="float32")
VALUES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 5e-324, 1e-45, 1e-5, 1e-4, 1.0, 2.0, 1e38, 1e300),
    "top_p": (1.0, 1.0, 0.9, 0.5, 1e-9, 1e-300, 0.0),
    "top_k": (0, 0, 1, 3, V, 2**31, 2**40),
    "min_p": (0.0, 0.0, 1e-300, 1e-45, 0.1, 1.0),
    "repetition_penalty": (1.0, 1e-300, 1e-38, 1e-3, 2.0, 1e38, 1e300),
    "presence_penalty": (0.0, -2.0, 2.0, 1e38, -1e300),
    "frequency_penalty": (0.0, -2.0, 2.0, -1e38, 1e300),
    "logit_bias": (
        (), ((3, 100.0), (9, -100.0)), ((3, 3e38), (3, 3e38), (5, -3e38)), ((4, 1e300), (5, -1e300))
    ),
    "min_tokens": (0, 0, 99),
    "seed": (0, -1, 2**63),
}  # fmt: skip
ROWS: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "usual": lambda dice: dice.normal(0, 3, V),
    "equal": lambda dice: np.full(V, -1.5),
    "largest": lambda dice: np.full(V, MOST),
    "both ends": lambda dice: np.where(dice.random(V) < 0.5, MOST, -MOST),
    "one left": lambda dice: np.where(np.arange(V) == 11, 0.5, -np.inf),
    "few left": lambda dice: np.where(dice.random(V) < 0.02, dice.normal(0, 3, V), -np.inf),
    "damaged": lambda dice: np.where(dice.random(V) < 0.3, np.nan, dice.normal(0, 3, V)),
    "infinite": lambda dice: np.where(dice.random(V) < 0.01, np.inf, dice.normal(0, 3, V)),
    "nothing": lambda dice: np.where(dice.random(V) < 0.5, np.nan, -np.inf),
}


def cases(count: int) -> tuple[torch.Tensor, list[Chunk]]:
    chance, dice = random.Random(11), np.random.default_rng(11)
    logits, chunks = [], []
    with np.errstate(over="ignore"):
        for number in range(count):
            logits.append(list(ROWS.values())[number % len(ROWS)](dice).astype(np.float32))
            rule = {name: chance.choice(values) for name, values in VALUES.items()}
            outputs = tuple(chance.choices(range(20), k=chance.randrange(8)))
            mask = AllowedTokens.of(chance.sample(range(V), k=3)) if chance.random() < 0.2 else None
            asked = chunk(
                [1], table=[0], start=number % 15, sampling=Sampling(max_tokens=9, **rule),
                prompt_ids=(1, 2, 11), outputs=outputs,
            )  # fmt: skip
            chunks.append(msgspec.structs.replace(asked, allowed=mask))
    return torch.from_numpy(np.stack(logits)), chunks


def on_device(logits_RV: torch.Tensor, chunks: list[Chunk]) -> list[int]:
    """By what is written on a device before its sampler, whose oracle stands for it here."""
    arrays = step_arrays(chunks, LAYOUT, feeds=[-1] * len(chunks), keeps=range(len(chunks)))
    names = [field.name for field in fields(RowRules)]
    rules = RowRules(**{name: torch.from_numpy(getattr(arrays, name)) for name in names})
    shaped_RV = shaped_on_device(logits_RV, chunks, eos_token_ids=EOS)
    tokens: list[int] = sample_on_host(shaped_RV, rules).tolist()
    return tokens


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_row_has_the_same_right_token_by_every_path_whatever_is_asked() -> None:
    logits_RV, chunks = cases(900)
    tokens = [
        NO_TOKEN if token is None else token.token_id
        for token in sample_tokens(logits_RV, chunks, eos_token_ids=EOS)
    ]
    assert on_device(logits_RV, chunks) == tokens
    for row, (asked, token) in enumerate(zip(chunks, tokens, strict=True)):
        judge(logits_RV[row].numpy(), asked, token)


def judge(logits_V: NDArray[np.float32], asked: Chunk, token: int) -> None:
    rule = asked.sampling
    assert rule is not None
    scores_V = shaped(logits_V, asked, rule)
    if not (scores_V > -np.inf).any():
        assert token == NO_TOKEN
        return
    assert scores_V[token] > -np.inf
    best = scores_V.max()
    slack_V = 4e-7 * (np.abs(scores_V) + abs(best))
    if rule.temperature < GREEDY_BELOW:
        assert scores_V[token] + slack_V[token] >= best
        return
    with np.errstate(over="ignore", invalid="ignore"):
        temperature = min(rule.temperature, MOST)
        gaps_V = (best - scores_V) / temperature
        slack_V = np.nan_to_num(slack_V / temperature + 1e-6 * gaps_V, nan=np.inf)
        ahead_V = gaps_V + slack_V < gaps_V[token] - slack_V[token]
        least = max(0.0, gaps_V[token] - slack_V[token])
    assert gaps_V[token] < MOST
    if rule.min_p > 0:
        assert least <= -math.log(rule.min_p) * (1 + 1e-6) + 1e-6
    if rule.top_k:
        assert ahead_V.sum() < rule.top_k
    if rule.top_p < 1:
        mass_V = np.exp(-np.maximum(0, gaps_V - np.where(np.isfinite(slack_V), slack_V, 0)))
        assert mass_V[ahead_V].sum() <= rule.top_p * mass_V.sum() * (1 + 1e-6)
    noise_V = gumbel(words(np.arange(V), seed=rule.seed, position=asked.position))
    most = noise_V[token] - least
    winner = int(scores_V.argmax())
    assert most + slack_V[winner] + 1e-6 >= noise_V[winner]
    if rule.top_p >= 1 and not rule.top_k and rule.min_p == 0:
        sums_V = noise_V - gaps_V - np.where(np.isfinite(slack_V), slack_V, np.inf)
        assert most + 1e-6 >= np.nanmax(sums_V)


def shaped(logits_V: NDArray[np.float32], asked: Chunk, rule: Sampling) -> NDArray[np.float64]:
    """As the sampler says, one token after the other, in float64."""
    raw_V = np.nan_to_num(logits_V.astype(np.float64), nan=-np.inf, posinf=MOST, neginf=-np.inf)
    if asked.allowed is not None:
        words_W = [*asked.allowed.words(), *[0] * V]
        raw_V[[not words_W[v // 32] >> v % 32 & 1 for v in range(V)]] = -np.inf
    scores_V = raw_V.copy()

    def change(token: int, score: float) -> None:
        if scores_V[token] > -np.inf:
            scores_V[token] = min(max(score, -MOST), MOST)

    factor = single(rule.repetition_penalty)
    for token in {*asked.prompt_ids, *asked.outputs} if rule.repetition_penalty != 1 else ():
        score = scores_V[token]
        change(token, (score / factor if factor else MOST) if score > 0 else score * factor)
    for token in set(asked.outputs):
        count = asked.outputs.count(token)
        change(token, scores_V[token] - single(rule.frequency_penalty * count
                                               + rule.presence_penalty))  # fmt: skip
    for token in {token for token, _ in rule.logit_bias}:
        bias = sum(b for t, b in rule.logit_bias if t == token)
        change(token, scores_V[token] + single(bias))
    if not rule.may_end(asked.num_outputs):
        scores_V[list(EOS)] = -np.inf
    return scores_V if (scores_V > -np.inf).any() else raw_V


def single(value: float) -> float:
    with np.errstate(under="ignore"):
        return float(np.float32(min(max(value, -MOST), MOST)))


def test_scores_that_a_penalty_would_make_infinite_are_the_largest_there_are() -> None:
    """Which killed workers: two of them, and their gap, were no numbers."""
    rule = Sampling(seed=3, max_tokens=9, repetition_penalty=1e-38, top_p=0.9)
    asked = chunk([1], table=[0], start=4, sampling=rule, prompt_ids=(5, 6), outputs=())
    (token,) = sample_tokens(torch.full((1, 50), 3.0), [asked], eos_token_ids=())
    assert token is not None and token.token_id in (5, 6)
