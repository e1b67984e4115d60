"""The fault table, row by row: real processes, real signals, and pools back where they were.

The answer of an undisturbed run of the same request, asked afterwards, is the oracle. The model
is a random checkpoint slow enough that a signal lands in the middle of what it is meant to hit.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import Cluster
from support.eventually import eventually

pytestmark = [pytest.mark.system, pytest.mark.slow]

APART = ["--local-prefill", "never"]


@pytest.fixture(scope="module")
def cluster(slow_checkpoint: Path) -> Iterator[Cluster]:
    with Cluster(checkpoint=slow_checkpoint, prefill=2, decode=2, extra=APART) as up:
        yield up


def _body(cluster: Cluster, *, salt: int, length: int, max_tokens: int) -> dict[str, Any]:
    prompt = [3 + (salt * 101 + i * i * 13 + i) % 900 for i in range(length)]
    return {
        "model": cluster.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "seed": 17,
        "ignore_eos": True,
        "logprobs": 0,
    }


def _ask(cluster: Cluster, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=100)


def _found(name: str | None) -> str:
    assert name is not None
    return name


def _tokens(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    tokens: list[str] = answer.json()["choices"][0]["logprobs"]["tokens"]
    return tokens


def _busy(cluster: Cluster, role: str) -> str | None:
    """A worker of this role that is running a request."""
    for name, worker in cluster.workers().items():
        if worker["role"] == role and worker["running"] > 0:
            return name
    return None


def _all_back(cluster: Cluster) -> None:
    """Killed workers are there again, and every pool is back at its size."""
    cluster.wait_ready(*cluster.names)
    cluster.wait_idle()


def _disturb(cluster: Cluster, body: dict[str, Any], *, role: str) -> httpx.Response:
    """Ask, kill -9 the worker of `role` that runs the request, give back the answer."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_ask, cluster, body)
        victim = _found(eventually(lambda: _busy(cluster, role), within_s=30))
        assert not answer.done(), "the request ended before the signal: nothing was tested"
        cluster.kill(victim)
        return answer.result(timeout=100)


def test_a_prefill_worker_killed_while_computing_costs_only_time(cluster: Cluster) -> None:
    """Chunks were already being fetched: this is both rows, before the first token and during
    the transfer."""
    body = _body(cluster, salt=1, length=1500, max_tokens=12)
    disturbed = _disturb(cluster, body, role="prefill")
    assert len(_tokens(disturbed)) == 12
    assert _tokens(disturbed) == _tokens(_ask(cluster, body))
    _all_back(cluster)


def test_a_stream_goes_on_with_the_same_tokens_when_its_decode_worker_is_killed(
    cluster: Cluster,
) -> None:
    body = {**_body(cluster, salt=2, length=60, max_tokens=200), "stream": True}
    lines: list[str] = []
    killed = False
    with httpx.stream(
        "POST", f"{cluster.base_url}/v1/completions", json=body, timeout=100
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            lines.append(line)
            if len(lines) > 20 and not killed:
                cluster.kill(_found(eventually(lambda: _busy(cluster, "decode"))))
                killed = True
    assert killed
    assert [line for line in lines if line][-1] == "data: [DONE]"
    undisturbed = _ask(cluster, _body(cluster, salt=2, length=60, max_tokens=200))
    assert _text_of(lines) == undisturbed.json()["choices"][0]["text"]
    _all_back(cluster)


def _text_of(lines: list[str]) -> str:
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])


def test_requests_go_on_while_redis_is_dead_and_the_index_is_exact_again_after(
    cluster: Cluster,
) -> None:
    body = _body(cluster, salt=3, length=200, max_tokens=8)
    before = _tokens(_ask(cluster, body))
    old = cluster.kill("redis")
    assert _tokens(_ask(cluster, body)) == before
    eventually(lambda: cluster.pid_of("redis") != old, within_s=20)
    eventually(lambda: cluster.get("/cluster").json()["index"] == "exact", within_s=20)
    again = _ask(cluster, body)
    assert _tokens(again) == before
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= 192
    _all_back(cluster)


def test_a_client_that_leaves_gives_all_blocks_back(cluster: Cluster) -> None:
    body = {**_body(cluster, salt=4, length=400, max_tokens=1000), "stream": True}
    with httpx.stream(
        "POST", f"{cluster.base_url}/v1/completions", json=body, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
    cluster.wait_idle(within_s=2.0)


def test_a_client_that_leaves_during_prefill_gives_all_blocks_back(cluster: Cluster) -> None:
    body = _body(cluster, salt=5, length=1500, max_tokens=10)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=0.7)
    cluster.wait_idle(within_s=5.0)


@pytest.mark.parametrize(("num_corrupted", "num_attempts"), [(2, 1), (3, 2)])
def test_corrupted_blocks_are_detected_and_never_decoded_from(
    slow_checkpoint: Path, num_corrupted: int, num_attempts: int
) -> None:
    """A block is fetched again twice; broken a third time, the request is placed again."""
    flags = [*APART, "--tamper-blocks", str(num_corrupted)]
    with Cluster(checkpoint=slow_checkpoint, prefill=1, decode=1, extra=flags) as up:
        body = _body(up, salt=6, length=200, max_tokens=12)
        disturbed = _ask(up, body)
        assert up.log.count("block rejected") == num_corrupted
        trace = up.get(f"/trace/{disturbed.headers['x-request-id']}").json()
        assert len(trace["traces"][0]["attempts"]) == num_attempts
        assert _tokens(disturbed) == _tokens(_ask(up, body))
        _all_back(up)


def test_an_exhausted_pool_refuses_before_the_first_byte_and_says_when_to_retry(
    slow_checkpoint: Path,
) -> None:
    flags = [*APART, "--kv-blocks", "64", "--max-waiting", "2"]
    with Cluster(checkpoint=slow_checkpoint, prefill=1, decode=1, extra=flags) as up:
        codes: list[int] = []
        guard = threading.Lock()

        def ask(salt: int) -> None:
            answer = _ask(up, _body(up, salt=salt, length=500, max_tokens=60))
            with guard:
                codes.append(answer.status_code)
            if answer.status_code != 200:
                assert answer.status_code in (429, 503), answer.text
                assert float(answer.headers["retry-after"]) > 0
                assert answer.json()["error"]["message"]

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(ask, range(24)))
        assert 200 in codes
        assert set(codes) != {200}
        _all_back(up)
