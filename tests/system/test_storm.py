"""Everything at once: requests, leaving clients and dying workers, and every pool whole again.

Not one scenario but a seeded mixture; whatever happens to a request, it has one ending, and an
answer that arrives is the answer an undisturbed cluster gives.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import Cluster

pytestmark = [pytest.mark.system, pytest.mark.slow]

NUM_REQUESTS = 120
NUM_DISTINCT = 12
NUM_CLIENTS = 12


@pytest.fixture(scope="module")
def cluster(small_checkpoint: Path) -> Iterator[Cluster]:
    flags = ["--kv-blocks", "256", "--token-budget", "128", "--max-running", "8"]
    with Cluster(checkpoint=small_checkpoint, prefill=2, decode=2, extra=flags) as up:
        yield up


def _body(cluster: Cluster, kind: int) -> dict[str, Any]:
    length = (1, 16, 17, 90, 300, 700)[kind % 6]
    return {
        "model": cluster.model,
        "prompt": [2 + (kind * 97 + i * i * 7) % 900 for i in range(length)],
        "max_tokens": (1, 9, 40)[kind % 3],
        "temperature": (0.0, 0.9)[kind % 2],
        "seed": kind,
        "ignore_eos": True,
    }


def _text(cluster: Cluster, kind: int) -> str | None:
    """None when the cluster said that it has no room."""
    answer = httpx.post(
        f"{cluster.base_url}/v1/completions", json=_body(cluster, kind), timeout=100
    )
    if answer.status_code in (429, 503):
        assert float(answer.headers["retry-after"]) > 0
        return None
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def _leave(cluster: Cluster, kind: int) -> None:
    """Take a few chunks and go."""
    body = {**_body(cluster, kind), "stream": True, "max_tokens": 200}
    url = f"{cluster.base_url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=100) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number == 3:
                return


def test_every_answer_is_right_and_every_block_comes_back(cluster: Cluster) -> None:
    expected = {kind: _text(cluster, kind) for kind in range(NUM_DISTINCT)}
    chance = random.Random(7)
    plan = [(chance.randrange(NUM_DISTINCT), chance.random()) for _ in range(NUM_REQUESTS)]
    victims = {30: "decode-0", 55: "prefill-1", 80: "decode-1", 100: "redis"}

    def serve(number: int) -> tuple[int, str | None]:
        if number in victims:
            cluster.kill(victims[number])
        kind, what = plan[number]
        if what < 0.25:
            _leave(cluster, kind)
            return kind, expected[kind]
        return kind, _text(cluster, kind)

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        answers = list(clients.map(serve, range(NUM_REQUESTS)))
    wrong = [(kind, text) for kind, text in answers if text not in (None, expected[kind])]
    assert not wrong
    assert sum(text is not None for _, text in answers) > NUM_REQUESTS // 2
    cluster.wait_ready(*cluster.names)
    cluster.wait_idle()
