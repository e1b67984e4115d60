import json
import subprocess
import sys
from typing import Any

import httpx
import pytest
from support.api import HI, MODEL, Bench, chat, error_of

from protocol.ids import Epoch, RouterId, WorkerId
from protocol.messages import Blocks, ServedVersion, Speeds, TransportUse
from router.http.middleware import COUNTED_PATHS
from router.http.openapi.endpoints import ENDPOINTS
from router.prefix.state import IndexState
from router.runtime import ClusterView, WorkerView

pytestmark = pytest.mark.anyio


def test_every_path_is_counted_by_itself() -> None:
    assert {one.path for one in ENDPOINTS if "{" not in one.path} <= COUNTED_PATHS


async def test_the_request_id_is_echoed_and_names_the_answer(client: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "my/id-1"}
    body = {"model": MODEL, "messages": HI}
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.headers["x-request-id"] == "my/id-1"
    assert response.json()["id"] == "chatcmpl-my/id-1"
    trace = (await client.get("/trace/my/id-1")).json()
    assert trace["traces"][0]["outcome"] == "stop"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "\x01", "é"])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    raw = [(b"x-request-id", given.encode())]
    ids = {(await client.get("/nowhere", headers=raw)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2 and all(len(one) == 32 for one in ids)


async def test_ready_says_why_not(bench: Bench, client: httpx.AsyncClient) -> None:
    assert (await client.get("/ready")).json() == {"ready": True}
    bench.cluster.reason = "no decode worker"
    response = await client.get("/ready")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"ready": False, "reason": "no decode worker"}
    assert (await client.get("/health")).status_code == 200


async def test_ready_warns_of_an_api_that_is_open_to_the_network(bench: Bench) -> None:
    async with bench.client(is_open_to_network=True) as client:
        assert "no API key" in (await client.get("/ready")).json()["warning"]


async def test_cluster_shows_every_worker(bench: Bench, client: httpx.AsyncClient) -> None:
    blocks = {"total": 8, "free": 6, "cached": 2, "leased": 1}
    speeds = {"prefill_tokens_per_s": 1.5, "decode_step_s": 0.5, "transfer_bytes_per_s": 2.5}
    speeds |= {"transfer_latency_s": 0.25}
    worker: dict[str, Any] = {"id": "decode-0", "role": "decode", "pid": 7, "host": "h"}
    worker |= {"epoch": 2**62, "state": "ready", "transport": "shm", "running": 1, "waiting": 0}
    worker |= {"why": ""}
    version = {"model": "tiny", "revision": "0123456789abcdef", "text": "t"}
    use = {"name": "shm", "peer": "prefill-0", "why": "shm reachable", "fetches": 2, "bytes": 64}
    use |= {"bytes_per_s": 1e9, "latency_s": 0.125}
    bench.cluster.shown = ClusterView(
        router=RouterId("router-0"),
        index=IndexState.EXACT,
        redis="connected",
        workers=(
            WorkerView(
                **worker
                | {"id": WorkerId("decode-0"), "epoch": Epoch(2**62)}
                | {"blocks": Blocks(**blocks), "speeds": Speeds(**speeds)}  # type: ignore[arg-type]
                | {"version": ServedVersion(**version)}
                | {"transports": (TransportUse(**use),)}  # type: ignore[arg-type]
            ),
        ),
    )
    measured = speeds | {"step": [0.0, 0.0, 0.0, 0.0]}  # as of `StepModel`
    assert (await client.get("/cluster")).json() == {
        "router": "router-0",
        "index": "exact",
        "redis": "connected",
        "workers": [
            worker | {"blocks": blocks, "speeds": measured, "transports": [use], "version": version}
        ],
        "processes": [],
    }


async def test_metrics_count_answers_by_path_and_status(client: httpx.AsyncClient) -> None:
    await chat(client)
    await chat(client, nonsense=1)
    await client.get("/no/such/path")
    text = (await client.get("/metrics")).text
    for path, status in (
        ("/v1/chat/completions", 200),
        ("/v1/chat/completions", 400),
        ("other", 404),
    ):
        assert f'baton_requests_total{{path="{path}",status="{status}"}} 1.0' in text


async def test_unknown_paths_and_methods_are_errors_in_openais_shape(
    client: httpx.AsyncClient,
) -> None:
    for response, status in (
        (await client.get("/nowhere"), 404),
        (await client.get("/v1/completions"), 405),
        (await client.get("/trace/none"), 404),
    ):
        assert response.status_code == status
        error_of(response)


@pytest.mark.parametrize("path", ["/v1/models", "/cluster", "/trace/x", "/tokenize", "/load"])
async def test_a_key_is_asked_for(bench: Bench, path: str) -> None:
    async with bench.client(api_keys=("right", "other")) as client:
        for given in (None, "Bearer wrong", "Bearer ", "right", "Basic right", "Bearer é"):
            headers = [] if given is None else [(b"authorization", given.encode())]
            response = await client.get(path, headers=headers)
            assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")


async def test_any_of_the_keys_opens(bench: Bench) -> None:
    async with bench.client(api_keys=("right", "other")) as client:
        for key in ("right", "other"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_a_key_may_come_as_anthropics_clients_send_it(bench: Bench) -> None:
    async with bench.client(api_keys=("right", "other")) as client:
        for headers, status in (
            ({"x-api-key": "other"}, 200),
            ({"x-api-key": "wrong"}, 401),
            ({"x-api-key": "wrong", "authorization": "Bearer right"}, 200),
            ({"x-api-key": "right", "authorization": "Bearer wrong"}, 200),
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_a_refusal_has_the_shape_of_its_path(bench: Bench) -> None:
    async with bench.client(api_keys=("right",)) as client:
        for status, headers in ((401, {}), (404, {"x-api-key": "right"})):
            answer = await client.post("/v1/messages/batches", headers=headers)
            assert answer.status_code == status
            assert answer.json()["type"] == "error"
            assert answer.headers["request-id"] == answer.headers["x-request-id"]
        headers = {"x-api-key": "right", "anthropic-version": "2023-06-01"}
        missing = await client.get("/v1/models/other", headers=headers)
        assert missing.json()["error"]["details"]["error_code"] == "model_not_found"
        plain = await client.get("/v1/models/other", headers={"x-api-key": "right"})
        assert error_of(plain)["code"] == "model_not_found"
        assert "request-id" not in plain.headers


def test_an_empty_key_is_no_key(bench: Bench) -> None:
    with pytest.raises(ValueError, match="api_keys"):
        bench.app(api_keys=("",))


async def test_a_mistake_of_ours_anywhere_is_a_500_with_the_request_id(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.cluster.shown = object()  # type: ignore[assignment]
    response = await client.get("/cluster", headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")
    assert error_of(response)["message"] == "internal error"


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/metrics"])
async def test_probes_and_scrapers_need_no_key(bench: Bench, path: str) -> None:
    async with bench.client(api_keys=("right",)) as client:
        assert (await client.get(path)).status_code == 200


def test_the_router_is_free_of_torch_and_small() -> None:
    code = (
        "import json, pathlib, sys, router.http.app\n"
        "heavy = [m for m in ('torch', 'transformers', 'triton', 'openai') if m in sys.modules]\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "peak_kb = int(status.partition('VmHWM:')[2].split()[0])  # since exec: not the parent's\n"
        "print(json.dumps({'heavy': heavy, 'peak_mb': peak_kb / 1024}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60, text=True
    )
    seen = json.loads(done.stdout)
    assert seen["heavy"] == []
    assert seen["peak_mb"] < 150
