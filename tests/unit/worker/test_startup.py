import asyncio
import logging
from pathlib import Path

import httpx
import pytest
from support.redis_server import redis_server

from protocol.errors import StoreError
from protocol.process.settings import WorkerSettings
from worker.startup import open_endpoints


def _knock(settings: WorkerSettings) -> None:
    async def knock() -> None:
        async with open_endpoints(settings):
            raise AssertionError("there is no Redis")

    with pytest.raises(StoreError):
        asyncio.run(knock())


def _settings(**given: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"model": Path("m"), **given})


@pytest.mark.parametrize(("host", "warnings"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_a_worker_open_to_the_network_says_so(
    host: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _knock(_settings(host=host, redis="redis://127.0.0.1:1/0"))
    assert [record.message for record in caplog.records] == ["open to the network"] * warnings


def test_the_metrics_port_says_whether_the_worker_takes_requests() -> None:
    def get(port: int, path: str) -> tuple[int, str]:
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
        return answer.status_code, answer.text.strip()

    async def test(redis: str) -> None:
        async with open_endpoints(_settings(redis=redis, metrics_port=0)) as endpoints:
            port = endpoints.metrics.port
            assert port is not None
            assert get(port, "/ready") == (503, "loading")
            assert get(port, "/health") == (200, "ok")
            endpoints.metrics.health.note("ready")
            assert get(port, "/ready") == (200, "ok")
            endpoints.metrics.health.note("draining")
            assert get(port, "/ready") == (503, "draining")
            assert "baton_worker_running" in get(port, "/metrics")[1]

    with redis_server() as server:
        asyncio.run(test(server.url))
