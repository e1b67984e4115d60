"""What real workers measure of themselves, as `/cluster` shows it."""

from typing import Any

import pytest
from support.cluster import Cluster
from support.eventually import eventually

pytestmark = pytest.mark.system


def test_workers_say_what_steps_take_before_any_request_and_how_fast_kv_comes_after_one(
    apart_cluster: Cluster,
) -> None:
    cluster = apart_cluster

    def is_calibrated() -> bool:
        steps = [worker["speeds"]["step"] for worker in cluster.workers().values()]
        return len(steps) == 2 and all(sum(step) > 0 for step in steps)

    eventually(is_calibrated, 30, "both workers are calibrated")
    body = {"model": cluster.model, "prompt": "The lamp " * 40, "max_tokens": 4}
    with cluster.client() as client:
        assert client.post("/v1/completions", json=body).status_code == 200

    def pair() -> dict[str, Any] | None:
        worker = cluster.workers()["decode-0"]
        peers: list[dict[str, Any]] = worker["transports"]
        measured = worker["speeds"]["transfer_bytes_per_s"] > 0
        return peers[0] if peers and peers[0]["bytes_per_s"] > 0 and measured else None

    found = eventually(pair, 30, "the pair is measured")
    assert found is not None
    assert found["peer"] == "prefill-0"
    assert 0 <= found["latency_s"] < 10
