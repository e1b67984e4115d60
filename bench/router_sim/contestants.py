"""The routers that are measured, each with what it routes to: on a core of its own, the rest beside
the clients on the other."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.router_sim.processes import OTHER_CORE, ROUTER_CORE, Process, python
from controlplane.local.embedded_redis import find_server

PACE_MS = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """A router that serves."""

    name: str
    port: int
    router: Process
    model: str
    redis: str = ""


@contextmanager
def redis_server() -> Iterator[str]:
    """Its URL."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        flags = ("--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no")
        with Process([str(find_server()), *flags], core=OTHER_CORE):
            yield f"unix://{path}"


@contextmanager
def baton(
    model: Path, *, num_decode: int, num_prefill: int = 0, pace_ms: float = PACE_MS,
    flags: tuple[str, ...] = (),
) -> Iterator[Running]:  # fmt: skip
    port = _free_port()
    with redis_server() as redis:
        engines = python(
            "bench.router_sim.engines", "--redis", redis, "--model", str(model),
            "--prefill", str(num_prefill), "--decode", str(num_decode), "--pace-ms", str(pace_ms),
        )  # fmt: skip
        words = python("router", "--redis", redis, "--port", str(port), *flags)
        with Process(engines, core=OTHER_CORE) as running, Process(words, core=ROUTER_CORE) as it:
            running.first_line()
            it.until_answers(f"http://127.0.0.1:{port}/ready")
            yield Running("baton", port, it, "bench-router", redis)


@contextmanager
def sglang_router(model: Path, *, num_workers: int) -> Iterator[Running]:
    """Its own rule, `cache_aware`, over mock workers."""
    port = _free_port()
    with _mock_workers(model, num_workers) as ports:
        urls = [f"http://127.0.0.1:{one}" for one in ports]
        words = python(
            "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
            "--policy", "cache_aware", "--log-level", "error", "--prometheus-port",
            str(_free_port()), "--worker-urls", *urls,
        )  # fmt: skip
        with Process(words, core=ROUTER_CORE) as it:
            it.until_answers(f"http://127.0.0.1:{port}/readiness")
            yield Running("sglang-router", port, it, "mock")


@contextmanager
def mock_worker(model: Path) -> Iterator[Running]:
    """No router at all: what a worker of its own answers."""
    with _mock_workers(model, 1) as (port,):
        yield Running("direct", port, Process([], core=OTHER_CORE), "mock")


@contextmanager
def _mock_workers(model: Path, num: int) -> Iterator[list[int]]:
    words = python(
        "bench.router_sim.mock_workers", "--model", str(model), "--num", str(num),
        "--pace-ms", str(PACE_MS),
    )  # fmt: skip
    with Process(words, core=OTHER_CORE) as workers:
        yield [int(port) for port in workers.first_line().split()[1:]]


@contextmanager
def dynamo_frontend(model: Path) -> Iterator[Running]:
    """Dynamo's frontend with its default processor, which tokenises, over one mocker of its own."""
    port = _free_port()
    with TemporaryDirectory() as folder:
        env = {"DYN_FILE_KV": folder, "DYN_LOG": "error"}
        planes = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")
        mocker = python(
            "dynamo.mocker", "--model-path", str(model), "--model-name", "mock", *planes,
            "--speedup-ratio", "0",
        )  # fmt: skip
        frontend = python(
            "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port), *planes,
            "--router-mode", "kv",
        )  # fmt: skip
        with (
            Process(mocker, core=OTHER_CORE, env=env),
            Process(frontend, core=ROUTER_CORE, env=env) as it,
        ):
            it.until_answers(f"http://127.0.0.1:{port}/health")
            yield Running("dynamo", port, it, "mock")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
