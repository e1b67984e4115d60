"""`python -m router` as a process, before fake workers that live in the test's."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import httpx
from support.eventually import soon
from support.fabric import Fabric
from support.fake_worker import Act, FakeWorker
from support.processes import ROOT
from support.redis_server import RedisServer, free_port

from protocol.membership import Membership
from protocol.messages import Role
from protocol.store.workers import Store
from protocol.text.packed_text import PackedText

PROMPT = list(range(5, 45))


def command(*, redis: str, port: int, flags: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", "router", "--redis", redis, "--port", str(port), *flags]


def ended(words: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """A process that ends by itself."""
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **env},
    )  # fmt: skip


def started(
    words: list[str], *, log: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """`log`: where what it says goes; None: where ours does. `env`: besides ours."""
    with nullcontext() if log is None else log.open("wb") as told:
        return subprocess.Popen(words, cwd=ROOT, stderr=told, env={**os.environ, **(env or {})})


class Deployment:
    """A router process and, in this one, a prefill and two decode workers."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        client: httpx.AsyncClient,
        add: Callable[[FakeWorker], None],
        text: PackedText,
    ) -> None:
        self.process = process
        self._add = add
        self._text = text
        self.url = str(client.base_url).rstrip("/")
        self.client = client
        self.workers: dict[str, FakeWorker] = {}
        self.fabric = Fabric()

    def add(self, name: str, role: Role, plan: Sequence[Act] = ()) -> FakeWorker:
        self.workers[name] = worker = FakeWorker(
            name, role, self.fabric, plan=plan, text=self._text
        )
        self._add(worker)
        return worker

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


async def present(worker: FakeWorker, store: Store) -> None:
    here = worker.registration
    membership = Membership(store, worker=here.worker, epoch=here.epoch)
    async with asyncio.TaskGroup() as tasks:
        running = membership.run(here, worker.beat)
        presence = tasks.create_task(running, name=f"{worker.id} membership")
        await worker.run()
        presence.cancel()


@asynccontextmanager
async def deployment(
    redis: RedisServer,
    model: Path,
    *,
    plan: tuple[Act, ...] = (),
    flags: Sequence[str] = (),
    descriptors: int = 0,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Deployment]:
    """`model`: whose text the workers have. `descriptors`: the router's `ulimit -n`. `log`
    and `env`: as of `started`."""
    port, store = free_port(), Store(redis.address)
    words = command(redis=redis.url, port=port, flags=flags)
    if descriptors:
        words = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *words]
    process = started(words, log=log, env=env)
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

            def add(worker: FakeWorker) -> None:
                tasks.create_task(present(worker, store), name=worker.id)

            made = Deployment(process, client, add, PackedText.read(model))
            for name, role in roles:
                made.add(name, role, plan if name == "decode-0" else ())
            await soon(made.ready, 60, "the router is ready")
            await soon(lambda: all(w.joined.is_set() for w in made.workers.values()), 30)
            yield made
            for worker in made.workers.values():
                worker.die()
    finally:
        process.kill()
        process.wait()
        await store.close()


@contextmanager
def deployed(redis: RedisServer, model: Path, *, flags: Sequence[str] = ()) -> Iterator[Deployment]:
    """As `deployment`, with the workers in a thread: for tests that share one."""
    made: list[Deployment] = []
    up, loop = threading.Event(), asyncio.new_event_loop()
    down = asyncio.Event()

    async def keep() -> None:
        async with deployment(redis, model, flags=flags) as deployment_:
            made.append(deployment_)
            up.set()
            await down.wait()

    def run() -> None:
        try:
            loop.run_until_complete(keep())
        finally:
            up.set()
            loop.close()

    thread = threading.Thread(target=run, name="workers")
    thread.start()
    try:
        up.wait(90)
        (running,) = made
        yield running
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join(30)
