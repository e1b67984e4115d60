"""Two real routers, four prefill and four decode workers that are killed, stopped and restarted.

Two workers of each role are always left alone, so that whoever waits a moment can be served.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
from support.processes import Process
from support.redis_server import RedisServer, free_port, redis_server

Deed = Literal["kill", "stop", "restart"]
DEEDS: tuple[Deed, ...] = ("kill", "stop", "restart")
NUM_EACH = 4
NUM_LEFT_ALONE = 2
STOPPED_S = (0.5, 6.0)
"""A link is lost after 3 s of silence."""
START_S = 240.0
POLL_S = 0.25
"""Routers are not to be kept busy with being asked how they are."""
IDLE_S = 20.0


def _role(name: str) -> str:
    return name.partition("-")[0]


@dataclass(slots=True)
class ChaosFleet:
    checkpoint: Path
    redis: RedisServer
    urls: list[str] = field(default_factory=list)
    """Of the routers."""
    deeds: Counter[str] = field(default_factory=Counter)
    _workers: dict[str, Process] = field(default_factory=dict)
    _routers: list[Process] = field(default_factory=list)
    _disturbed: set[str] = field(default_factory=set)

    async def start(self) -> None:
        for policy in ("auto", "never"):
            port = free_port()
            flags = ("--port", str(port), "--local-prefill", policy, "--log-level", "warning")
            self._routers.append(Process("router", "--redis", self.redis.url, *flags, env={}))
            self.urls.append(f"http://127.0.0.1:{port}")
        for role in ("prefill", "decode"):
            for number in range(NUM_EACH):
                self._start_worker(f"{role}-{number}")
        await self.until_ready(within_s=START_S)

    def close(self) -> None:
        for process in (*self._workers.values(), *self._routers):
            with suppress(ProcessLookupError):
                process.ask(signal.SIGCONT)
            process.close()

    async def disturb(self, *, every_s: float, chance: random.Random) -> None:
        """Until cancelled; what was begun then is ended."""
        async with asyncio.TaskGroup() as tasks:
            deeds: list[asyncio.Task[None]] = []
            try:
                while True:
                    await asyncio.sleep(every_s * chance.uniform(0.5, 1.5))
                    victim = self._victim(chance)
                    if victim is not None:
                        deed = chance.choice(DEEDS)
                        stopped_s = chance.uniform(*STOPPED_S)
                        self._disturbed.add(victim)
                        doing = self._do(deed, victim, stopped_s=stopped_s)
                        deeds.append(tasks.create_task(doing, name=f"{deed} {victim}"))
            except asyncio.CancelledError:
                await asyncio.wait(deeds) if deeds else None

    async def until_ready(self, *, within_s: float = START_S) -> None:
        async def ready() -> bool:
            views = [await self._view(url) for url in self.urls]
            return all(
                sum(worker["state"] == "ready" for worker in view) == 2 * NUM_EACH for view in views
            )

        await _seen(ready, within_s)

    async def until_idle(self) -> None:
        """Every block of every pool is back."""

        async def idle() -> bool:
            views = [await self._view(url) for url in self.urls]
            return all(view and all(map(_is_idle, view)) for view in views)

        await _seen(idle, IDLE_S)

    async def metric(self, name: str, *labels: str) -> float:
        """Of all routers, and of all labels that contain these texts."""
        async with httpx.AsyncClient(timeout=10, verify=False) as client:
            texts = [(await client.get(f"{url}/metrics")).text for url in self.urls]
        lines = [line for text in texts for line in text.splitlines() if line.startswith(name)]
        found = [line for line in lines if all(label in line for label in labels)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def router_complaints(self) -> list[dict[str, object]]:
        """What routers warned of, but for lost workers and attempts, which were meant."""
        meant = ("worker gone", "attempt lost", "not reached", "stalled")
        lines = [line for router in self._routers for line in router.log]
        return [line for line in lines if line["event"] not in meant]

    def _victim(self, chance: random.Random) -> str | None:
        calm = sorted(set(self._workers) - self._disturbed)
        able = [
            name for name in calm if sum(_role(one) == _role(name) for one in calm) > NUM_LEFT_ALONE
        ]
        return chance.choice(able) if able else None

    async def _do(self, deed: Deed, victim: str, *, stopped_s: float) -> None:
        """It is disturbed until both routers may use it again."""
        self.deeds[deed] += 1
        process = self._workers[victim]
        match deed:
            case "kill":
                process.kill()
            case "restart":
                process.ask(signal.SIGTERM)
                await _seen(partial(_has_ended, process), 60)
            case "stop":
                process.ask(signal.SIGSTOP)
                await asyncio.sleep(stopped_s)
                process.ask(signal.SIGCONT)
        if deed != "stop":
            process.close()
            self._start_worker(victim)
        await _seen(partial(self._is_back, victim), START_S)
        self._disturbed.discard(victim)

    async def _is_back(self, name: str) -> bool:
        views = [await self._view(url) for url in self.urls]
        return all(
            any(one["id"] == name and one["state"] == "ready" for one in view) for view in views
        )

    async def _view(self, url: str) -> list[dict[str, Any]]:
        try:
            async with httpx.AsyncClient(timeout=5, verify=False) as client:
                workers: list[dict[str, Any]] = (await client.get(f"{url}/cluster")).json()[
                    "workers"
                ]
        except httpx.HTTPError:
            return []
        return workers

    def _start_worker(self, name: str) -> None:
        model = ("--model", str(self.checkpoint), "--redis", self.redis.url, "--worker", name)
        size = ("--block-tokens", "16", "--kv-blocks", "512", "--max-running", "8")
        pace = ("--token-budget", "128", "--drain-s", "10", "--lease-ttl-s", "2")
        where = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
        module = f"{_role(name)}_worker"
        self._workers[name] = Process(module, *model, *size, *pace, *where, env={})


async def _has_ended(process: Process) -> bool:
    return process.exit_code is not None


async def _seen(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    """TimeoutError when it is not true in time."""
    async with asyncio.timeout(within_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(POLL_S)


def _is_idle(worker: dict[str, Any]) -> bool:
    blocks = worker["blocks"]
    at_rest = worker["running"] == worker["waiting"] == blocks["leased"] == 0
    return at_rest and bool(blocks["free"] + blocks["cached"] == blocks["total"])


@asynccontextmanager
async def chaos_fleet(checkpoint: Path) -> AsyncIterator[ChaosFleet]:
    """Ready, with a Redis of its own."""
    async with AsyncExitStack() as stack:
        fleet = ChaosFleet(checkpoint, stack.enter_context(redis_server()))
        stack.callback(fleet.close)
        await fleet.start()
        yield fleet
