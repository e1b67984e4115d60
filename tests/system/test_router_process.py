"""`python -m router` as a process, before fake workers that live in the test."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from support.checkpoints import write_checkpoint
from support.eventually import soon
from support.fake_worker import Act, Fabric, FakeWorker, expected
from support.redis_server import RedisServer, free_port, redis_server

from protocol.membership import Membership
from protocol.messages import Role, Sampling
from protocol.store import Store

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
FILES = resource.RLIMIT_NOFILE
PROMPT = list(range(5, 45))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "fake")


def command(model: Path, *, redis: str, port: int) -> list[str]:
    flags = ("--model", str(model), "--redis", redis, "--port", str(port))
    return [sys.executable, "-m", "router", *flags]


def started(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, cwd=ROOT)


class Deployment:
    """A router process and, in this one, a prefill and two decode workers."""

    def __init__(self, process: subprocess.Popen[bytes], client: httpx.AsyncClient) -> None:
        self.process = process
        self.client = client
        self.workers: dict[str, FakeWorker] = {}

    async def ready(self) -> bool:
        assert self.process.poll() is None, "the router ended"
        try:
            return (await self.client.get("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def why(self, worker: str) -> str:
        """What `/cluster` says of one that gets nothing."""
        view = (await self.client.get("/cluster")).json()
        return str(next((w["why"] for w in view["workers"] if w["id"] == worker), ""))

    async def complete(self, *, max_tokens: int) -> httpx.Response:
        return await self.client.post(
            "/v1/completions",
            json={
                "model": "fake",
                "prompt": PROMPT,
                "max_tokens": max_tokens,
                "ignore_eos": True,
                "seed": 1,
            },
        )


async def _present(worker: FakeWorker, store: Store) -> None:
    here = worker.registration
    membership = Membership(store, worker=here.worker, epoch=here.epoch)
    async with asyncio.TaskGroup() as tasks:
        running = membership.run(here, worker.beat)
        presence = tasks.create_task(running, name=f"{worker.id} membership")
        await worker.run()
        presence.cancel()


@asynccontextmanager
async def deployment(
    redis: RedisServer, model: Path, *, plan: tuple[Act, ...] = ()
) -> AsyncIterator[Deployment]:
    port, store, fabric = free_port(), Store(redis.url), Fabric()
    process = started(command(model, redis=redis.url, port=port))
    roles: list[tuple[str, Role]] = [
        ("prefill-0", "prefill"),
        ("decode-0", "decode"),
        ("decode-1", "decode"),
    ]
    try:
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
            asyncio.TaskGroup() as tasks,
        ):
            made = Deployment(process, client)
            for name, role in roles:
                worker = FakeWorker(name, role, fabric, plan=plan if name == "decode-0" else ())
                made.workers[name] = worker
                tasks.create_task(_present(worker, store), name=name)
            await soon(made.ready, 60, "the router is ready")
            await soon(lambda: all(w.joined.is_set() for w in made.workers.values()), 30)
            yield made
            for worker in made.workers.values():
                worker.die()
    finally:
        process.kill()
        process.wait()
        await store.close()


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(test)


def test_a_completion_crosses_the_process_and_survives_a_killed_decode_worker(
    redis: RedisServer, model: Path
) -> None:
    async def test() -> None:
        async with deployment(redis, model, plan=(Act("die", 4),)) as made:
            response = await made.complete(max_tokens=10)
            assert response.status_code == 200, response.text
            tokens = expected(PROMPT, Sampling(seed=1, max_tokens=10, ignore_eos=True))
            text = response.json()["choices"][0]["text"]
            assert text.split() == [str(token) for token in tokens]
            assert response.headers["x-baton-route"].startswith("prefill-0>decode-")

            request_id = response.headers["x-request-id"]
            (trace,) = (await made.client.get(f"/trace/{request_id}")).json()["traces"]
            assert [a["decode"] for a in trace["attempts"]] == ["decode-0", "decode-1"]
            view = (await made.client.get("/cluster")).json()
            ready = {w["id"] for w in view["workers"] if w["state"] == "ready"}
            assert ready == {"prefill-0", "decode-1"}

    run(test())


def test_redis_killed_fails_no_request(redis: RedisServer, model: Path) -> None:
    async def test() -> None:
        async with deployment(redis, model) as made:
            redis.kill()
            response = await made.complete(max_tokens=5)
            assert response.status_code == 200, response.text

            async def index_is(state: str) -> bool:
                view = (await made.client.get("/cluster")).json()
                return bool(view["index"] == state)

            await soon(lambda: index_is("degraded"))
            redis.start()
            await soon(lambda: index_is("exact"))
            assert (await made.client.get("/ready")).status_code == 200

    run(test())


def test_a_router_out_of_descriptors_serves_on_and_says_who_is_not_reached(
    redis: RedisServer, model: Path
) -> None:
    async def test() -> None:
        async with deployment(redis, model) as made, AsyncExitStack() as silent:
            pid = made.process.pid
            used, before = len(os.listdir(f"/proc/{pid}/fd")), resource.prlimit(pid, FILES)
            resource.prlimit(pid, FILES, (used + 1, before[1]))
            where = (made.client.base_url.host, made.client.base_url.port)
            for _ in range(100):  # what listens takes them, the router has no descriptor for them
                one = silent.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(where)
            async with asyncio.TaskGroup() as tasks:
                late = FakeWorker("decode-2", "decode", Fabric())
                store = Store(redis.url)
                silent.push_async_callback(store.close)
                tasks.create_task(_present(late, store), name="late")

                async def is_said() -> bool:
                    return "Too many open files" in await made.why("decode-2")

                await soon(is_said, 20)
                assert (await made.complete(max_tokens=5)).status_code == 200
                resource.prlimit(pid, FILES, before)
                await soon(late.joined.is_set, 20)
                late.die()

    run(test())


def test_sigterm_ends_running_requests_well_and_exits_0(redis: RedisServer, model: Path) -> None:
    async def test() -> None:
        async with deployment(redis, model) as made:
            running = [asyncio.ensure_future(made.complete(max_tokens=200)) for _ in range(4)]
            await soon(lambda: any(w.seen for w in made.workers.values()))
            made.process.send_signal(signal.SIGTERM)
            for response in await asyncio.gather(*running):
                assert response.status_code == 200, response.text
            await soon(lambda: made.process.poll() == 0, 20)

    run(test())


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--mode", "x"), 2, "router: unknown setting: --mode x"),
        (("--model", "/nowhere"), 3, "router: /nowhere/config.json: missing"),
        (("--redis", "redis://127.0.0.1:1"), 1, "router: Redis: "),
    ],
)
def test_what_only_the_operator_can_mend_is_one_line_and_an_exit_code(
    flags: tuple[str, ...], code: int, line: str, model: Path
) -> None:
    ended = subprocess.run(
        [*command(model, redis="redis://127.0.0.1:1", port=0), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_one_line_and_exit_code_2(redis: RedisServer, model: Path) -> None:
    ended = subprocess.run(
        command(model, redis=redis.url, port=redis.port),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"router: port: cannot listen on 127.0.0.1:{redis.port}: Address already in use\n"
    )
