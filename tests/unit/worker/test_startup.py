import asyncio
import logging
import socket
from pathlib import Path

import httpx
import pytest
from support.eventually import soon
from support.redis_server import RedisServer, redis_server

from protocol.errors import SettingsError
from protocol.process.metrics import WorkerMetrics
from protocol.process.settings import WorkerSettings
from worker.startup import open_endpoints


def _settings(**given: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"model": Path("m"), **given})


@pytest.mark.parametrize(("host", "warnings"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_a_worker_open_to_the_network_says_so(
    host: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def opened(settings: WorkerSettings) -> None:
        async with open_endpoints(settings):
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(opened(_settings(host=host, redis="redis://127.0.0.1:1/0")))
    said = [record.message for record in caplog.records]
    assert said.count("open to the network") == warnings


def _get(port: int, path: str) -> tuple[int, str]:
    answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
    return answer.status_code, answer.text.strip()


def test_a_worker_before_redis_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer()
    waits = f"waits for Redis at 127.0.0.1:{server.port}"

    async def test() -> None:
        settings = _settings(redis=server.url, metrics_port=0)
        async with open_endpoints(settings) as endpoints:
            port = endpoints.metrics.port
            assert port is not None
            await soon(lambda: _get(port, "/ready") == (503, waits), 30)
            assert _get(port, "/health") == (200, "ok")
            endpoints.metrics.health.note("ready")  # loaded, and nobody can find it
            assert _get(port, "/ready") == (503, waits)
            server.start()
            await soon(lambda: _get(port, "/ready") == (200, "ok"), 30)

    try:
        asyncio.run(test())
    finally:
        server.kill()
    said = [record.message for record in caplog.records]
    assert said.count(waits) == 1


def test_no_name_server_is_asked_before_probes_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("a name server was asked")

    monkeypatch.setattr(socket, "getfqdn", ask)
    metrics = WorkerMetrics()
    metrics.serve_if_asked(host="127.0.0.1", port=0)
    assert metrics.port is not None
    assert _get(metrics.port, "/health") == (200, "ok")


def test_a_metrics_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"metrics_port: cannot listen on 127.0.0.1:{port}"):
            WorkerMetrics().serve_if_asked(host="127.0.0.1", port=port)


def test_the_metrics_port_says_whether_the_worker_takes_requests() -> None:
    async def test(redis: str) -> None:
        async with open_endpoints(_settings(redis=redis, metrics_port=0)) as endpoints:
            port = endpoints.metrics.port
            assert port is not None
            assert _get(port, "/ready") == (503, "loading")
            assert _get(port, "/health") == (200, "ok")
            endpoints.metrics.health.note("ready")
            assert _get(port, "/ready") == (200, "ok")
            endpoints.metrics.health.note("draining")
            assert _get(port, "/ready") == (503, "draining")
            assert "baton_worker_running" in _get(port, "/metrics")[1]

    with redis_server() as server:
        asyncio.run(test(server.url))
