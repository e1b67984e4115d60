"""Real workers on a tiny random checkpoint, for system tests without our router."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from support.mini_router import MiniRouter, mini_router
from support.processes import Process, process
from support.redis_server import RedisServer, redis_server

from protocol.messages import Sampling
from tools.make_checkpoint import Shape, make_checkpoint

BLOCK = 8
CONTEXT = 256
GREEDY = Sampling(seed=1, max_tokens=12, temperature=0.0, ignore_eos=True)
SEEDED = Sampling(seed=7, max_tokens=12, temperature=0.8, top_p=0.95, ignore_eos=True)
LONG = Sampling(seed=1, max_tokens=200, temperature=0.0, ignore_eos=True)


def tiny_checkpoint(path: Path) -> Path:
    """Random weights; a step takes a few milliseconds."""
    make_checkpoint(path, Shape(context=CONTEXT))
    return path


class WorkerCluster:
    """One Redis and the workers that tests ask for; those that live on are used again."""

    def __init__(self, checkpoint: Path, stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._stack = stack
        self._workers: dict[str, tuple[tuple[str, ...], Process]] = {}
        self.redis: RedisServer = stack.enter_context(redis_server())

    def start(
        self, worker: str, *flags: str, env: Mapping[str, str] = MappingProxyType({})
    ) -> Process:
        """That worker with those flags: the one that runs already, or a new one. `env` is added to
        the environment of a new one."""
        known = self._workers.get(worker)
        if known is not None and known[1].exit_code is None:
            assert known[0] == flags, f"{worker} runs with other flags"
            return known[1]
        started = self._stack.enter_context(
            process(
                f"{worker.partition('-')[0]}_worker",
                *("--model", str(self._checkpoint), "--redis", self.redis.url),
                *("--worker", worker, "--dtype", "float32", "--block-tokens", str(BLOCK)),
                *("--token-budget", "32", "--max-running", "8", "--kv-blocks", "96"),
                *("--threads", "1", "--drain-s", "10", "--lease-ttl-s", "2"),
                *(() if "--device" in flags else ("--device", "cpu")),
                *flags,
                env=env,
            )
        )
        self._workers[worker] = (flags, started)
        return started


def drive(cluster: WorkerCluster, test: Callable[[MiniRouter], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(280), mini_router(cluster.redis.address) as router:
            await test(router)

    asyncio.run(bounded())


def prompt(length: int, *, salt: int = 0) -> list[int]:
    return [5 + (position * 37 + salt * 101) % 400 for position in range(length)]
