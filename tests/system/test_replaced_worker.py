"""The only decode worker is replaced under load, as a rollout does it: a new one is started, and
the old one is asked to end when the new one says that it is ready. No request may see it."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

import httpx
import pytest
from support.cluster import TINY
from support.eventually import START_S, soon
from support.processes import Process, process
from support.redis_server import RedisServer, free_port

from protocol.codec import SPOKEN_VERSIONS
from protocol.ids import RouterId
from protocol.store.workers import RouterRecord, Store

pytestmark = pytest.mark.system
ASKED = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 3, "ignore_eos": True}
AFTER = 10
"""Requests to each router that are to be well after each change."""


class Swap:
    """Two routers and one decode worker at a time."""

    def __init__(self, redis: RedisServer, stack: ExitStack) -> None:
        self._redis = redis
        self._stack = stack
        self._num_started = 0
        self.processes: list[Process] = []
        """Of the routers."""
        self.routers = [self._router(free_port()) for _ in range(2)]
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """What requests ended with, by router."""
        self.failures: list[str] = []

    def _router(self, port: int) -> str:
        flags = ("--redis", self._redis.url, "--port", str(port))
        self.processes.append(self._stack.enter_context(process("router", *flags)))
        return f"http://127.0.0.1:{port}"

    def start_worker(self) -> tuple[Process, str]:
        """And where it says whether it is ready."""
        port, name = free_port(), f"decode-{self._num_started}"
        self._num_started += 1
        flags = (
            *("--model", str(TINY), "--redis", self._redis.url, "--worker", name),
            *("--metrics-port", str(port), "--device", "cpu", "--threads", "1"),
            *("--kv-blocks", "96", "--drain-s", "20"),
        )
        started = self._stack.enter_context(process("decode_worker", *flags))
        return started, f"http://127.0.0.1:{port}/ready"

    async def ask(self, router: str, client: httpx.AsyncClient) -> None:
        try:
            answer = await client.post(f"{router}/v1/completions", json=ASKED)
            outcome = str(answer.status_code)
            text = answer.text
        except httpx.HTTPError as error:
            outcome = text = repr(error)
        self.outcomes[router, outcome] += 1
        if outcome != "200":
            self.failures.append(f"{outcome}: {text}")

    async def load(self, router: str) -> None:
        """One request after the other."""
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                await self.ask(router, client)
                await asyncio.sleep(0.05)

    async def until_served(self, num: int = AFTER) -> None:
        """So many more by each router."""
        wanted = {one: self.outcomes[one, "200"] + num for one in self.routers}

        def is_served() -> bool:
            assert not self.failures, self.failures[0]
            return all(self.outcomes[one, "200"] >= wanted[one] for one in self.routers)

        await soon(is_served, 120)


async def answers(url: str) -> bool:
    return (await _get(url)).startswith("200 ")


async def says(url: str, why: str) -> bool:
    return why in await _get(url)


async def _get(url: str) -> str:
    async with httpx.AsyncClient(timeout=10) as client:
        try:
            answer = await client.get(url)
        except httpx.HTTPError:
            return "nobody"
        return f"{answer.status_code} {answer.text.strip()}"


@contextmanager
def swap(redis: RedisServer) -> Iterator[Swap]:
    with ExitStack() as stack:
        yield Swap(redis, stack)


@asynccontextmanager
async def loaded(made: Swap) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        clients = [
            tasks.create_task(made.load(router), name=f"load {router}") for router in made.routers
        ]
        yield
        for client in clients:
            client.cancel()


def run(redis: RedisServer, test: Callable[[Swap, Store], Awaitable[None]]) -> None:
    async def bounded(made: Swap) -> None:
        store = Store(redis.address, deadline_s=20.0)
        try:
            async with asyncio.timeout(1_000):
                await test(made, store)
        finally:
            await store.close()

    with swap(redis) as made:
        asyncio.run(bounded(made))


async def replaced(made: Swap, store: Store, num_times: int) -> None:
    worker = await first_worker(made, store)
    async with loaded(made):
        await made.until_served()
        for _ in range(num_times):
            new, url = made.start_worker()
            await soon(lambda url=url: answers(url), START_S, "the new one is ready")  # type: ignore[misc]
            worker.ask(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait) == 0
            worker = new
            await made.until_served()
    assert not made.failures


async def first_worker(made: Swap, store: Store) -> Process:
    """It says that it comes while it loads, and is ready when all registered routers have met it,
    not before: one of them is an entry that nobody is behind."""
    absent = RouterRecord(router=RouterId("absent"), wires=SPOKEN_VERSIONS)
    await store.register_router(absent, ttl_s=1_000)
    worker, url = made.start_worker()

    async def comes() -> bool:
        coming = (await store.list_members()).coming
        return [(one.worker, one.role, one.model) for one in coming] == [
            ("decode-0", "decode", "tiny")
        ]

    await soon(comes, START_S, "the worker says that it comes")
    await soon(lambda: says(url, "absent has not met it"), START_S)
    assert (await store.list_members()).coming == ()
    for router in made.routers:
        await soon(lambda router=router: answers(f"{router}/ready"), START_S)  # type: ignore[misc]
    assert not await answers(url)
    await store.deregister_router(absent.router)
    await soon(lambda: answers(url))
    return worker


def test_no_request_fails_when_the_last_decode_worker_is_replaced(redis: RedisServer) -> None:
    async def test(made: Swap, store: Store) -> None:
        await replaced(made, store, 1)
        assert len(await store.list_routers()) == 2
        made.processes[0].ask(signal.SIGTERM)

        async def left() -> bool:
            return len(await store.list_routers()) == 1

        await soon(left, what="a router that ends leaves")
        assert await answers(f"{made.routers[0]}/health"), "it lingers"

    run(redis, test)


@pytest.mark.long
def test_no_request_fails_when_the_last_decode_worker_is_replaced_time_and_again(
    redis: RedisServer,
) -> None:
    async def test(made: Swap, store: Store) -> None:
        await replaced(made, store, 6)

    run(redis, test)
