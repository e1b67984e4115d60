"""Disaggregated output equals colocated output, token for token, over HTTP and real processes.

Two clusters serve the same float32 checkpoint: one prefills and decodes in the same process, the
other always apart. A small token budget makes every longer prompt a chunked one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import Cluster

pytestmark = [pytest.mark.system, pytest.mark.slow]

BLOCK = 16
CONTEXT = 2048
OUTPUT = 24
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 300, CONTEXT - OUTPUT]


@pytest.fixture(scope="module")
def colocated(small_checkpoint: Path) -> Iterator[Cluster]:
    with Cluster(checkpoint=small_checkpoint, prefill=0, decode=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def apart(small_checkpoint: Path) -> Iterator[Cluster]:
    flags = ["--local-prefill", "never", "--token-budget", "128"]
    with Cluster(checkpoint=small_checkpoint, prefill=1, decode=1, extra=flags) as cluster:
        yield cluster


def _prompt(length: int, *, seed: int) -> list[int]:
    return [1 + (seed * 7919 + i * i * 31 + i * 17) % 700 for i in range(length)]


def _complete(cluster: Cluster, prompt: list[int], **options: Any) -> tuple[dict[str, Any], str]:
    body = {
        "model": cluster.model,
        "prompt": prompt,
        "max_tokens": OUTPUT,
        "ignore_eos": True,
        "logprobs": 0,
        **options,
    }
    answer = httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers["x-baton-route"]


def _tokens(answer: dict[str, Any]) -> list[str]:
    tokens: list[str] = answer["choices"][0]["logprobs"]["tokens"]
    return tokens


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1.0, "top_p": 0.95, "seed": 11}]
)
def test_tokens_are_the_same_apart_and_together(
    colocated: Cluster, apart: Cluster, length: int, sampling: dict[str, Any]
) -> None:
    prompt = _prompt(length, seed=1)
    together, _ = _complete(colocated, prompt, **sampling)
    separated, route = _complete(apart, prompt, **sampling)
    assert "prefill-0" in route
    assert len(_tokens(separated)) == OUTPUT
    assert _tokens(separated) == _tokens(together)


def test_tokens_are_the_same_when_both_ends_hold_part_of_the_prompt(
    colocated: Cluster, apart: Cluster
) -> None:
    shared = _prompt(200, seed=2)
    for turn in range(3):
        prompt = shared + _prompt(40 * turn + 5, seed=30 + turn)
        together, _ = _complete(colocated, prompt, temperature=0)
        separated, _ = _complete(apart, prompt, temperature=0)
        assert _tokens(separated) == _tokens(together)
        if turn:
            assert separated["usage"]["prompt_tokens_details"]["cached_tokens"] >= 192


def test_penalties_and_bias_continue_across_the_hand_over(
    colocated: Cluster, apart: Cluster
) -> None:
    options = {
        "temperature": 0.8,
        "seed": 5,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
        "logit_bias": {"42": 3.0},
        "min_p": 0.02,
        "top_k": 40,
    }
    prompt = _prompt(77, seed=3)
    together, _ = _complete(colocated, prompt, **options)
    separated, _ = _complete(apart, prompt, **options)
    assert _tokens(separated) == _tokens(together)
