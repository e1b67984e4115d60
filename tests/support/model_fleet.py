"""Routers as processes, behind them fake workers of several models and revisions, in this process.

A fake worker's tokens follow from those that it was given, whatever its text: what is wrong with a
prompt is seen at the worker.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from support.eventually import soon
from support.fabric import Fabric
from support.fake_worker import FakeWorker, next_token
from support.redis_server import RedisServer, free_port
from support.router_process import command, present, started

from protocol.messages import Role
from protocol.store.workers import Store
from protocol.text.packed_text import PackedText
from protocol.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedText:
    """A checkpoint's text, as workers give it and as it is meant."""

    packed: PackedText
    tokenizer: Tokenizer

    @classmethod
    def read(cls, folder: Path) -> "ServedText":
        return cls(PackedText.read(folder), Tokenizer.load(folder))

    def answer_to(self, prompt: str, *, num_tokens: int) -> str:
        """What a worker that was given the prompt's tokens answers."""
        sequence = self.tokenizer.encode(prompt)
        num_prompt = len(sequence)
        for _ in range(num_tokens):
            sequence.append(next_token(sequence))
        return "".join(f"{token} " for token in sequence[num_prompt:])


class ModelFleet:
    def __init__(
        self, clients: Sequence[httpx.AsyncClient], tasks: asyncio.TaskGroup, store: Store
    ):
        self.clients = clients
        """One of each router."""
        self.fabric = Fabric()
        self._tasks = tasks
        self._store = store
        self._workers: list[tuple[FakeWorker, ServedText]] = []

    async def add(
        self, name: str, text: ServedText, *, model: str, revision: str = "revision",
        role: Role = "decode",
    ) -> FakeWorker:  # fmt: skip
        """Returned once every router has greeted it."""
        worker = FakeWorker(
            name, role, self.fabric, model=model, revision=revision, text=text.packed
        )
        self._workers.append((worker, text))
        self._tasks.create_task(present(worker, self._store), name=name)
        await soon(lambda: len(worker.routers) == len(self.clients), what=f"{name} greeted")
        return worker

    async def drain(self, worker: FakeWorker) -> None:
        """As a worker does that was told to: it says so, ends what it has, and leaves."""
        worker.state = "draining"
        worker.say()
        await asyncio.sleep(0.3)
        await soon(lambda: not worker.working)
        worker.die()

    async def listed(self) -> list[set[str]]:
        """The names that each router serves."""
        answers = [await client.get("/v1/models") for client in self.clients]
        return [{one["id"] for one in answer.json()["data"]} for answer in answers]

    def given_another_text(self, prompt: str) -> set[str]:
        """Workers that were given other tokens than their own text makes of the prompt."""
        return {
            worker.id
            for worker, text in self._workers
            for message in worker.seen
            if list(message.token_ids) != text.tokenizer.encode(prompt)
        }

    def close(self) -> None:
        for worker, _ in self._workers:
            worker.die()


@asynccontextmanager
async def model_fleet(
    redis: RedisServer, *, num_routers: int, flags: Sequence[str] = ()
) -> AsyncIterator[ModelFleet]:
    store, ports = Store(redis.address), [free_port() for _ in range(num_routers)]
    processes = [started(command(redis=redis.url, port=port, flags=flags)) for port in ports]
    try:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
                )
                for port in ports
            ]
            async with asyncio.TaskGroup() as tasks:
                fleet = ModelFleet(clients, tasks, store)
                try:
                    yield fleet
                finally:
                    fleet.close()
    finally:
        for process in processes:
            process.kill()
            process.wait()
        await store.close()
