"""Choices of one prompt over real processes: each says what a request of its own seed says."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import Cluster

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.long]

APART = ["--local-prefill", "never", "--token-budget", "128"]


@pytest.fixture(scope="module")
def cluster(small_checkpoint: Path) -> Iterator[Cluster]:
    with Cluster(checkpoint=small_checkpoint, prefill=1, decode=2, extra=APART) as up:
        yield up


def _prompt(length: int, *, salt: int) -> list[int]:
    return [3 + (salt * 101 + i * i * 13 + i) % 700 for i in range(length)]


def _body(cluster: Cluster, prompt: object, **options: Any) -> dict[str, Any]:
    return {
        "model": cluster.model, "prompt": prompt, "max_tokens": 24, "ignore_eos": True,
        "logprobs": 0, "temperature": 1.0, **options,
    }  # fmt: skip


def _ask(cluster: Cluster, prompt: object, **options: Any) -> list[list[str]]:
    """Tokens of each choice."""
    body = _body(cluster, prompt, **options)
    answer = httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=100)
    assert answer.status_code == 200, answer.text
    return [choice["logprobs"]["tokens"] for choice in answer.json()["choices"]]


def _singles(cluster: Cluster, prompt: list[int], *, seed: int, n: int, **more: Any) -> list[Any]:
    return [_ask(cluster, prompt, seed=seed + i, **more)[0] for i in range(n)]


def _streamed(
    cluster: Cluster, prompt: list[int], *, request: str, kill_after: int = 0, **options: Any
) -> tuple[dict[int, list[str]], list[int]]:
    """Tokens by choice, and whose each chunk was in order; the worker that decodes the first choice
    is killed after so many chunks, if any."""
    body = _body(cluster, prompt, stream=True, **options)
    tokens, order, last = defaultdict[int, list[str]](list), list[int](), ""
    with (
        cluster.client(timeout_s=100) as client,
        client.stream(
            "POST", "/v1/completions", json=body, headers={"x-request-id": request}
        ) as answer,
    ):
        assert answer.status_code == 200
        for last in filter(None, answer.iter_lines()):
            if last.startswith("data: {") and (choices := json.loads(last[6:])["choices"]):
                order.append(choices[0]["index"])
                if choices[0].get("logprobs"):
                    tokens[choices[0]["index"]] += choices[0]["logprobs"]["tokens"]
                if len(order) == kill_after:
                    cluster.kill(cluster.placed(f"{request}.0")["decode"])
    assert last == "data: [DONE]"
    return tokens, order


def test_streamed_choices_come_side_by_side(cluster: Cluster) -> None:
    prompt = _prompt(300, salt=1)
    tokens, order = _streamed(cluster, prompt, request="side", n=3, seed=50, max_tokens=120)
    assert [tokens[i] for i in range(3)] == _singles(
        cluster, prompt, seed=50, n=3, max_tokens=120
    )  # fmt: skip
    ends = [max(at for at, one in enumerate(order) if one == i) for i in range(3)]
    starts = [order.index(i) for i in range(3)]
    assert max(starts) < min(ends)
    cluster.wait_idle()


def test_all_choices_go_on_identically_when_their_decode_worker_is_killed(
    cluster: Cluster,
) -> None:
    prompt = _prompt(300, salt=2)
    alone = _singles(cluster, prompt, seed=60, n=3, max_tokens=400)
    tokens, _ = _streamed(
        cluster, prompt, request="killed", kill_after=30, n=3, seed=60, max_tokens=400
    )
    assert [tokens[i] for i in range(3)] == alone
    traces = [cluster.get(f"/trace/killed.{i}").json()["traces"][0] for i in range(3)]
    assert all(len(trace["attempts"]) > 1 for trace in traces)
    cluster.wait_ready(*cluster.names)
    cluster.wait_idle()


@pytest.mark.parametrize("more", [{}, {"best_of": 2}, {"logprobs": 3, "presence_penalty": 0.5}])
def test_choices_of_two_prompts_are_those_of_single_requests(
    cluster: Cluster, more: dict[str, Any]
) -> None:
    prompts = [_prompt(130, salt=3), _prompt(131, salt=4)]
    alone = {key: value for key, value in more.items() if key != "best_of"}
    choices = _ask(cluster, prompts, n=2, seed=70, **more)
    first = _singles(cluster, prompts[0], seed=70, n=2, **alone)
    assert choices == first + _singles(cluster, prompts[1], seed=72, n=2, **alone)
    cluster.wait_idle()
