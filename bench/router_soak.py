"""Many streams at once for a while, a tenth of their clients slow and a tenth hanging up.

    make soak-router
    python -m bench.router_soak [--streams 2000] [--seconds 120] [--pace-ms 100] [--results]

Engines are simulated and count their blocks; a stream that ends is replaced by the next. Slow
clients read a kilobyte a second, with small buffers, until no more streams begin. Afterwards every
answer but theirs and those that were hung up on must be whole and right to the letter, every block
returned, and the router's memory flat. `--results` appends a line to
`bench/results/router_soak.jsonl`.
"""

import argparse
import asyncio
import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import uvloop

from bench.record import record
from bench.router_sim.answers import Answers
from bench.router_sim.checkpoint import Prompts, text_checkpoint
from bench.router_sim.clients import Client, Wish
from bench.router_sim.contestants import Running, baton
from bench.router_sim.slow_clients import HangingUp, Slow, connect_slowly
from protocol.text.tokenizer import Tokenizer

NUM_ENGINES = 4
PROMPT_TOKENS = 60
TOKENS = (40, 160)
"""Of an answer, at least and at most."""
SLOW_TIMES = 4
"""As many tokens of slow clients' answers, or they would never be far behind."""
MAX_LAG_BYTES = 16 << 10
IDLE_S = 10.0
"""Within which all blocks must be back."""


@dataclass(slots=True)
class Soak:
    """What came of it."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Streams that were whole, wrong, cut (slow ones only), hung up on, or that failed."""
    resident_mib: list[float] = field(default_factory=list)
    """Of the router, once a second."""
    most_open: int = 0
    num_held_blocks: int = -1
    first_failure: str = ""

    @property
    def growth(self) -> float:
        """Memory in the last quarter over that in the second."""
        quarter = len(self.resident_mib) // 4
        return median(self.resident_mib[-quarter:]) / median(
            self.resident_mib[quarter : 2 * quarter]
        )

    @property
    def is_good(self) -> bool:
        bad = self.kinds["wrong"] + self.kinds["failed"]
        return not bad and not self.num_held_blocks and self.growth < 1.1


class Streams:
    """`num` streams at any time; each tenth is slow, each tenth hangs up."""

    def __init__(self, of: Running, answers: Answers, *, num: int, soak: Soak) -> None:
        self._of, self._answers, self._num, self._soak = of, answers, num, soak
        self._prompts, self._random = Prompts(1), random.Random(1)
        self._num_open = 0
        self._loop = asyncio.get_running_loop()

    async def run(self, *, until: float) -> None:
        """Begins streams until then, and waits for those that are open."""
        async with asyncio.TaskGroup() as tasks:
            for place in range(self._num):
                tasks.create_task(self._keep_one(place, until), name=f"place {place}")
                if place % 20 == 0:
                    await asyncio.sleep(0.01)  # not all in one moment: that is `bench.router`'s

    async def _keep_one(self, place: int, until: float) -> None:
        while self._loop.time() < until:
            wish = Wish(
                prompt=self._prompts.text(PROMPT_TOKENS), seed=self._random.randrange(10_000),
                num_tokens=self._random.randint(*TOKENS) * (1 if place % 10 else SLOW_TIMES),
                model=self._of.model,
            )  # fmt: skip
            self._num_open += 1
            self._soak.most_open = max(self._soak.most_open, self._num_open)
            self._soak.kinds[await self._follow(place, wish, until)] += 1
            self._num_open -= 1

    async def _follow(self, place: int, wish: Wish, until: float) -> str:
        client = await self._connect(place, wish, until)
        client.send()
        answer = await client.done
        if not answer.is_whole:
            return self._broken(client)
        right = answer.text() == self._answers.text(wish.seed, wish.num_tokens)
        return "whole" if right else "wrong"

    async def _connect(self, place: int, wish: Wish, until: float) -> Client:
        request = wish.request()
        if place % 10 == 0:
            return await connect_slowly(self._of.port, request, until=until)
        made: Callable[[], Client] = partial(Client, request)
        if place % 10 == 1:
            made = partial(HangingUp, request, after=self._random.randint(1, wish.num_tokens))
        _, client = await self._loop.create_connection(made, "127.0.0.1", self._of.port)
        return client

    def _broken(self, client: Client) -> str:
        if isinstance(client, HangingUp):
            return "hung up on"
        if isinstance(client, Slow) and not client.answer.error:
            return "cut"
        self._soak.first_failure = self._soak.first_failure or (
            client.answer.error or f"ended after {client.answer.num_chunks} chunks"
        )
        return "failed"


async def soak_router(of: Running, answers: Answers, *, num: int, seconds: float) -> Soak:
    soak = Soak()
    streams = Streams(of, answers, num=num, soak=soak)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_watch(of, soak), name="memory")
        await streams.run(until=asyncio.get_running_loop().time() + seconds)
        watching.cancel()
    deadline = time.monotonic() + IDLE_S
    soak.num_held_blocks = _held_blocks(of)
    while soak.num_held_blocks and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        soak.num_held_blocks = _held_blocks(of)
    return soak


async def _watch(of: Running, soak: Soak) -> None:
    while True:
        soak.resident_mib.append(round(of.router.resident_mib(), 1))
        await asyncio.sleep(1.0)


def _held_blocks(of: Running) -> int:
    """As the workers last said."""
    with urllib.request.urlopen(f"http://127.0.0.1:{of.port}/cluster", timeout=10) as answer:
        pools = [worker["blocks"] for worker in json.load(answer)["workers"]]
    return sum(pool["total"] - pool["free"] - pool["cached"] for pool in pools)


def run(*, num: int, seconds: float, pace_ms: float) -> Soak:
    model = text_checkpoint()
    answers = Answers(Tokenizer.load(model))
    flags = ("--max-in-flight", str(2 * num), "--max-lag-bytes", str(MAX_LAG_BYTES))
    with baton(
        model, num_decode=NUM_ENGINES, num_prefill=1, pace_ms=pace_ms,
        flags=(*flags, "--log-level", "warning"),
    ) as it:  # fmt: skip
        return uvloop.run(soak_router(it, answers, num=num, seconds=seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--pace-ms", type=float, default=100.0)
    parser.add_argument("--results", action="store_true", help="keep the line")
    options = parser.parse_args()
    soak = run(num=options.streams, seconds=options.seconds, pace_ms=options.pace_ms)
    results = {
        "streams": dict(soak.kinds), "most_open": soak.most_open, "growth": round(soak.growth, 3),
        "held_blocks": soak.num_held_blocks, "resident_mib": soak.resident_mib,
        "first_failure": soak.first_failure, "good": soak.is_good,
    }  # fmt: skip
    if options.results:
        conditions = {name: value for name, value in vars(options).items() if name != "results"}
        record("router_soak", conditions=conditions, results=results)
    else:
        print(json.dumps(results))
    raise SystemExit(not soak.is_good)


if __name__ == "__main__":
    main()
