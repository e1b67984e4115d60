"""Prompts that are scored and pooled by real workers, whoever dies.

The oracle is one forward of the shipped model alone; `tests/parity/test_readings.py` compares such
with transformers.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support.cluster import TINY, Cluster
from support.eventually import eventually
from support.forwards import chunk, pool_for
from torch import Tensor

from engine.checkpoint.load import load_model
from engine.ops.inputs import forward_inputs

pytestmark = [pytest.mark.system, pytest.mark.slow]

IDS = [5 + (index * index * 31 + 7 * index) % 600 for index in range(300)]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def cluster(apart_cluster: Cluster) -> Cluster:
    return apart_cluster


@cache
def oracle() -> tuple[Tensor, Tensor]:
    """Logprobs [T, V] and the hidden states [T, K] after the last norm, of IDS."""
    model = load_model(TINY, dtype="float32")
    pool = pool_for(model, block_tokens=len(IDS), num_blocks=1)
    chunks = [chunk(IDS, table=[0])]
    inputs = forward_inputs(chunks, block_tokens=len(IDS))
    hidden_TK = model.hidden(replace(inputs, rows_R=torch.arange(len(IDS))), pool)
    assert hidden_TK is not None
    return model.logits(hidden_TK).log_softmax(-1), hidden_TK


def expected() -> list[float]:
    logprobs_TV, _ = oracle()
    return [float(logprobs_TV[place - 1, token]) for place, token in enumerate(IDS) if place]


def ask(cluster: Cluster, path: str = "completions", **fields: Any) -> httpx.Response:
    body = {"model": cluster.model, "temperature": 0} | fields
    if path == "embeddings":
        del body["temperature"]
    answer = httpx.post(f"{cluster.base_url}/v1/{path}", json=body, timeout=100)
    assert answer.status_code == 200, answer.text
    return answer


def scores(answer: httpx.Response) -> list[float]:
    found: list[float] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert found[0] is None
    return found[1:]


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_scores_are_of_one_forward_whoever_generates(cluster: Cluster, max_tokens: int) -> None:
    asked: dict[str, Any] = {"prompt": IDS, "logprobs": 1, "ignore_eos": True}
    plain = ask(cluster, max_tokens=4, **asked)
    answer = ask(cluster, max_tokens=max_tokens, echo=True, **asked)
    assert answer.headers["x-baton-route"].startswith(
        "prefill-0>decode-0" if max_tokens > 1 else "prefill-0;"
    )
    assert scores(answer)[: len(IDS) - 1] == pytest.approx(expected(), abs=TOLERANCE)
    generated = scores(answer)[len(IDS) - 1 :]
    assert generated == plain.json()["choices"][0]["logprobs"]["token_logprobs"][:max_tokens]


def test_what_follows_is_the_same_beside_scores_of_both_kinds(cluster: Cluster) -> None:
    asked: dict[str, Any] = {"prompt": IDS, "max_tokens": 24, "ignore_eos": True}
    plain, beside = ask(cluster, **asked), ask(cluster, prompt_logprobs=2, **asked)
    assert plain.json()["choices"][0]["text"] == beside.json()["choices"][0]["text"]
    listed = beside.json()["choices"][0]["prompt_logprobs"]
    own = [one[str(token)]["logprob"] for one, token in zip(listed[1:], IDS[1:], strict=True)]
    assert own == pytest.approx(expected(), abs=TOLERANCE)


def test_a_text_has_the_direction_of_its_last_token_alone_and_in_company(cluster: Cluster) -> None:
    _, hidden_TK = oracle()
    inputs = [IDS, IDS[:40], *([5 + number] for number in range(30))]
    answer = ask(cluster, "embeddings", input=inputs).json()
    for number, last in ((0, -1), (1, 39)):
        expected_K = hidden_TK[last] / hidden_TK[last].norm()
        got_K = torch.tensor(answer["data"][number]["embedding"])
        assert (got_K - expected_K).abs().max() < TOLERANCE
    assert answer["usage"]["prompt_tokens"] == sum(map(len, inputs))
    again = ask(cluster, "embeddings", input=inputs[2]).json()
    assert again["data"][0]["embedding"] == pytest.approx(answer["data"][2]["embedding"], abs=1e-6)


@pytest.mark.long
def test_scores_and_text_survive_the_worker_that_computes_them(small_checkpoint: Path) -> None:
    """Killed while it computes: another one says what is left, and nothing twice."""
    prompt = [3 + (index * 7 + index * index) % 1000 for index in range(1900)]
    slowly = ["--local-prefill", "never", "--token-budget", "16", "--max-running", "8"]
    asked: dict[str, Any] = {"prompt": prompt, "echo": True, "logprobs": 0}
    asked |= {"max_tokens": 40, "ignore_eos": True}
    with Cluster(checkpoint=small_checkpoint, prefill=2, extra=slowly) as up:
        with ThreadPoolExecutor() as threads:
            running = threads.submit(ask, up, **asked)
            victim, *_ = eventually(lambda: _computing(up))
            up.kill(victim)
            answer = running.result()
        undisturbed = ask(up, **asked)
        shown, whole = (one.json()["choices"][0] for one in (answer, undisturbed))
        assert shown["logprobs"]["tokens"] == whole["logprobs"]["tokens"]
        assert scores(answer) == pytest.approx(scores(undisturbed), abs=TOLERANCE)


def _computing(cluster: Cluster) -> list[str]:
    """The prefill workers that have a request."""
    busy = [name for name, worker in cluster.workers().items() if worker["running"]]
    return [name for name in busy if name.startswith("prefill")]
