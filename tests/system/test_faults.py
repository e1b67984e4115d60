"""The fault table, row by row: real processes, real signals, and pools back where they were.

The answer of an undisturbed run of the same request, asked afterwards, is the oracle. The model
is a random checkpoint slow enough that a signal lands in the middle of what it is meant to hit.
"""

import json
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import Cluster
from support.corrupting_worker import corrupting
from support.eventually import eventually

pytestmark = [pytest.mark.system, pytest.mark.slow]

APART = ["--local-prefill", "never"]
CHUNKED = ["--token-budget", "128"]
GONE_S = 1.0
"""Within this all blocks of a client that left are back, and `/cluster` says so."""


@pytest.fixture(scope="module")
def cluster(slow_checkpoint: Path) -> Iterator[Cluster]:
    with Cluster(checkpoint=slow_checkpoint, prefill=2, decode=2, extra=[*APART, *CHUNKED]) as up:
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


def _ask(cluster: Cluster, body: dict[str, Any], *, request: str | None = None) -> httpx.Response:
    headers = {} if request is None else {"x-request-id": request}
    return httpx.post(f"{cluster.base_url}/v1/completions", json=body, headers=headers, timeout=100)


def _tokens(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    tokens: list[str] = answer.json()["choices"][0]["logprobs"]["tokens"]
    return tokens


def _num_fetches(cluster: Cluster) -> int:
    """Of a prompt's KV, those of which a block has come: canaries come now and then beside them."""
    told = (line for line in cluster.log.splitlines() if '"first block"' in line)
    return sum('"lent":false' in line for line in told)


def _trace(cluster: Cluster, request: str) -> dict[str, Any]:
    trace: dict[str, Any] = cluster.get(f"/trace/{request}").json()["traces"][0]
    return trace


def _busy(cluster: Cluster, role: str) -> bool:
    """`/cluster` shows a worker of this role at work."""
    return any(w["role"] == role and w["running"] > 0 for w in cluster.workers().values())


def _all_back(cluster: Cluster) -> None:
    """Killed workers are there again, and every pool is back at its size."""
    cluster.wait_ready(*cluster.names)
    cluster.wait_idle()


@contextmanager
def _asking(
    cluster: Cluster, body: dict[str, Any], *, request: str, stopped: Sequence[str] = ()
) -> Iterator[Future[httpx.Response]]:
    """The request is under way, with these workers stopped; afterwards it has its answer."""
    pids = [cluster.kill(name, signal.SIGSTOP) for name in stopped]
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(_ask, cluster, body, request=request)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@contextmanager
def _streaming(cluster: Cluster, body: dict[str, Any], *, request: str) -> Iterator[httpx.Response]:
    """The first token is here; leaving hangs up."""
    headers = {"x-request-id": request}
    with (
        cluster.client(timeout_s=100) as client,
        client.stream("POST", "/v1/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        yield answer


@contextmanager
def _hanging_on(cluster: Cluster, body: dict[str, Any], *, request: str) -> Iterator[None]:
    """Asked, and not waiting for the answer; leaving resets the connection, so that nobody takes it
    for a client that only has no more to say."""
    url, text = httpx.URL(cluster.base_url), json.dumps(body)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {url.host}\r\nx-request-id: {request}\r\n"
    with socket.create_connection((url.host, url.port or 80), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(f"{head}content-length: {len(text)}\r\n\r\n{text}".encode())
        yield


def test_a_prefill_worker_killed_before_its_first_block_costs_only_time(cluster: Cluster) -> None:
    """Both are stopped, so that the one chosen has computed nothing when it is killed."""
    body = _body(cluster, salt=1, length=1500, max_tokens=12)
    with _asking(cluster, body, request="early", stopped=("prefill-0", "prefill-1")) as answer:
        victim = cluster.placed("early")["prefill"]
        cluster.kill(victim)
    disturbed = answer.result(timeout=0)
    first, *rest = _trace(cluster, "early")["attempts"]
    assert (first["prefill"], first["blocks_moved"], first["prefill_s"]) == (victim, 0, 0.0)
    assert rest[-1]["prefill"] not in (victim, None)
    assert len(_tokens(disturbed)) == 12
    assert _tokens(disturbed) == _tokens(_ask(cluster, body))
    _all_back(cluster)


def test_a_prefill_worker_killed_during_the_transfer_costs_only_time(cluster: Cluster) -> None:
    """Its first chunk is being fetched while it computes the others."""
    body = _body(cluster, salt=7, length=1500, max_tokens=12)
    fetches = _num_fetches(cluster)
    with _asking(cluster, body, request="late") as answer:
        victim = cluster.placed("late")["prefill"]
        eventually(lambda: _num_fetches(cluster) > fetches, within_s=30)
        cluster.kill(victim)
    disturbed = answer.result(timeout=0)
    first, *rest = _trace(cluster, "late")["attempts"]
    assert (first["prefill"], first["blocks_moved"]) == (victim, 0), "it had landed: too late"
    assert rest
    assert len(_tokens(disturbed)) == 12
    assert _tokens(disturbed) == _tokens(_ask(cluster, body))
    _all_back(cluster)


def test_blocks_that_arrived_before_the_kill_are_not_fetched_again(slow_checkpoint: Path) -> None:
    """One decode worker: what it got from the first prefill worker it need not get again."""
    flags = [*APART, *CHUNKED]
    with Cluster(checkpoint=slow_checkpoint, prefill=2, decode=1, extra=flags) as up:
        body = _body(up, salt=8, length=1500, max_tokens=12)
        fetches = _num_fetches(up)
        with _asking(up, body, request="resumed") as answer:
            victim = up.placed("resumed")["prefill"]
            eventually(lambda: _num_fetches(up) > fetches, within_s=30)
            up.kill(victim)
        disturbed = answer.result(timeout=0)
        first, *_, last = _trace(up, "resumed")["attempts"]
        assert (first["prefill"], first["blocks_moved"]) == (victim, 0), "it had landed: too late"
        assert last["decode"] == first["decode"]
        assert last["blocks_reused"] >= 128 // 16, "at least the first chunk had arrived"
        assert last["blocks_moved"] + last["blocks_reused"] == -(-1500 // 16)
        assert _tokens(disturbed) == _tokens(_ask(up, body))
        _all_back(up)


def test_a_stream_goes_on_identically_when_its_decode_worker_is_killed(cluster: Cluster) -> None:
    """Penalties, a stop string far behind the cut and logprobs go on as if nothing had been."""
    body = _body(cluster, salt=2, length=60, max_tokens=200)
    body |= {"presence_penalty": 0.6, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
    body |= {"temperature": 0.9, "top_p": 0.95, "logprobs": 2}
    undisturbed = _ask(cluster, body).json()["choices"][0]
    stop = _late_piece(undisturbed["text"])
    chunks: list[dict[str, Any]] = []
    victim = last = ""
    with _streaming(cluster, {**body, "stream": True, "stop": stop}, request="cut") as answer:
        for last in filter(None, answer.iter_lines()):
            chunks += [json.loads(last[6:])["choices"][0]] if last.startswith("data: {") else []
            if len(chunks) > 20 and not victim:
                victim = cluster.placed("cut")["decode"]
                cluster.kill(victim)
    assert last == "data: [DONE]"
    first, *rest = _trace(cluster, "cut")["attempts"]
    assert first["decode"] == victim and rest
    text = undisturbed["text"]
    assert "".join(chunk["text"] for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1]["finish_reason"] == "stop"
    _assert_same_logprobs(chunks, undisturbed["logprobs"])
    _all_back(cluster)


def test_a_stream_goes_on_identically_when_its_decode_worker_is_stopped(cluster: Cluster) -> None:
    """Its link lives on for a second more than the router waits."""
    body = _body(cluster, salt=12, length=60, max_tokens=150) | {"temperature": 0.9}
    chunks: list[dict[str, Any]] = []
    pid = 0
    try:
        with _streaming(cluster, {**body, "stream": True}, request="stopped") as answer:
            for line in filter(None, answer.iter_lines()):
                chunks += [json.loads(line[6:])["choices"][0]] if line.startswith("data: {") else []
                if len(chunks) > 20 and not pid:
                    pid = cluster.kill(cluster.placed("stopped")["decode"], signal.SIGSTOP)
    finally:
        if pid:
            os.kill(pid, signal.SIGCONT)
    first, *rest = _trace(cluster, "stopped")["attempts"]
    assert first["stalled"] == "next_token" and "has said nothing for" in first["outcome"]
    assert rest and rest[-1]["decode"] != first["decode"]
    assert 'baton_router_stalled_total{what="next_token"} ' in cluster.get("/metrics").text
    record = cluster.get("/requests/stopped").json()["traces"][0]
    assert record == _trace(cluster, "stopped") and record["num_stalled"] == 1
    undisturbed = _ask(cluster, body).json()["choices"][0]["text"]
    assert "".join(chunk["text"] for chunk in chunks) == undisturbed
    _all_back(cluster)


def _late_piece(text: str) -> str:
    """Four characters that first come in the last third of the text."""
    places = range(len(text) * 2 // 3, len(text) - 4)
    return next(text[at : at + 4] for at in places if text.find(text[at : at + 4]) == at)


def _assert_same_logprobs(chunks: Sequence[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Those of the stream are the first of the whole answer's."""
    parts = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    tokens = [token for part in parts for token in part["tokens"]]
    values = [value for part in parts for value in part["token_logprobs"]]
    tops = [sorted(top.values()) for part in parts for top in part["top_logprobs"]]
    num_tokens = len(tokens)
    assert 100 < num_tokens < len(whole["tokens"])
    assert tokens == whole["tokens"][:num_tokens]
    assert values == pytest.approx(whole["token_logprobs"][:num_tokens], abs=1e-3)
    for top, expected in zip(tops, whole["top_logprobs"], strict=False):
        assert top == pytest.approx(sorted(expected.values()), abs=1e-3)


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
    with _streaming(cluster, body, request="left") as answer:
        lines = answer.iter_lines()
        next(lines)
        eventually(lambda: _busy(cluster, "decode"))
    cluster.wait_idle(within_s=GONE_S)
    assert _trace(cluster, "left")["outcome"].startswith("aborted")


def test_a_client_that_leaves_during_prefill_gives_all_blocks_back(cluster: Cluster) -> None:
    body = _body(cluster, salt=5, length=1500, max_tokens=10)
    fetches = _num_fetches(cluster)
    with _hanging_on(cluster, body, request="left-early"):
        eventually(lambda: _num_fetches(cluster) > fetches, within_s=30)
        eventually(lambda: _busy(cluster, "prefill"))
    cluster.wait_idle(within_s=GONE_S)
    trace = _trace(cluster, "left-early")
    assert (trace["outcome"].startswith("aborted"), trace["output_tokens"]) == (True, 0)


@pytest.mark.parametrize(("num_corrupted", "num_attempts"), [(2, 1), (3 * 13, 2)])
def test_corrupted_blocks_are_detected_and_never_decoded_from(
    slow_checkpoint: Path, tmp_path: Path, num_corrupted: int, num_attempts: int
) -> None:
    """A block is fetched again twice; broken a third time, the request is placed again. The 13
    blocks of the prompt come in one chunk."""
    env = corrupting(tmp_path, num_blocks=num_corrupted)
    with Cluster(checkpoint=slow_checkpoint, prefill=1, decode=1, extra=APART, env=env) as up:
        body = _body(up, salt=6, length=200, max_tokens=12)
        disturbed = _ask(up, body)
        rejected = re.findall(r'"event":"block rejected".*"blocks":(\d+)', up.log)
        assert sum(map(int, rejected)) == num_corrupted
        trace = up.get(f"/trace/{disturbed.headers['x-request-id']}").json()
        assert len(trace["traces"][0]["attempts"]) == num_attempts
        assert _tokens(disturbed) == _tokens(_ask(up, body))
        _all_back(up)


def test_what_neither_pool_nor_queue_has_room_for_is_refused_before_the_first_byte(
    slow_checkpoint: Path,
) -> None:
    flags = [*APART, "--kv-blocks", "64", "--max-waiting", "2"]
    with Cluster(
        checkpoint=slow_checkpoint, prefill=1, decode=1, extra=flags, env={"BATON_MAX_QUEUE": "4"}
    ) as up:
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
