"""What is measured of a running router, by clients in this process."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.record import percentiles
from bench.router_sim.checkpoint import Prompts
from bench.router_sim.clients import (
    Answer,
    Wish,
    answers,
    connect,
    one_after_another,
    some_at_a_time,
)
from bench.router_sim.contestants import Running

NUM_STREAMS = 256
PROMPT_TOKENS = 500
SETTLE_S = 1.0
"""All streams have begun by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """256 streams at the pace of their engines, in the middle of them."""

    cpu_s_a_million_chunks: float
    num_chunks: int
    itl_ms: dict[str, float | int]
    ttft_ms: dict[str, float | int]


def wishes(of: Running, num: int, *, num_tokens: int, seed: int) -> list[Wish]:
    prompts = Prompts(seed)
    return [
        Wish(
            prompt=prompts.text(PROMPT_TOKENS), seed=1 + 997 * number, num_tokens=num_tokens,
            model=of.model,
        )
        for number in range(num)
    ]  # fmt: skip


async def paced(of: Running, *, seconds: float, pace_ms: float, seed: int) -> Paced:
    num_tokens = round((seconds + 3 * SETTLE_S) * 1e3 / pace_ms)
    asked = wishes(of, NUM_STREAMS, num_tokens=num_tokens, seed=seed)
    clients = await connect(of.port, [wish.request() for wish in asked])
    for client in clients:
        client.send()
    await asyncio.sleep(2 * SETTLE_S)
    began, cpu_before = time.perf_counter(), of.router.cpu_s()
    await asyncio.sleep(seconds)
    ended, cpu_after = time.perf_counter(), of.router.cpu_s()
    got = await answers(clients, within_s=60)
    within = [_between(answer, began, ended) for answer in got]
    num_chunks = sum(answer.num_chunks for answer in within)
    return Paced(
        cpu_s_a_million_chunks=(cpu_after - cpu_before) / num_chunks * 1e6,
        num_chunks=num_chunks,
        itl_ms=_ms([gap for answer in within for gap in answer.gaps_s()]),
        ttft_ms=_ms([answer.first_s() for answer in got]),
    )


async def burst(of: Running, *, num: int = NUM_STREAMS, seed: int) -> dict[str, float | int]:
    """Milliseconds to the first text of as many requests at once."""
    asked = wishes(of, num, num_tokens=4, seed=seed)
    clients = await connect(of.port, [wish.request() for wish in asked])
    for client in clients:
        client.send()
    return _ms([answer.first_s() for answer in await answers(clients, within_s=60)])


async def alone(of: Running, *, num: int, seed: int) -> float:
    """Median milliseconds to the first text of requests one by one."""
    asked = wishes(of, num, num_tokens=1, seed=seed)
    got = await one_after_another(of.port, [wish.request() for wish in asked])
    return median(answer.first_s() for answer in got) * 1e3


async def cpu_s_a_thousand(of: Running, *, num: int, num_tokens: int, seed: int) -> float:
    """Of requests 32 at a time, streamed."""
    asked = wishes(of, num, num_tokens=num_tokens, seed=seed)
    requests = [wish.request() for wish in asked]
    await some_at_a_time(of.port, requests[:100], num=32)
    before = of.router.cpu_s()
    await some_at_a_time(of.port, requests, num=32)
    return (of.router.cpu_s() - before) / num * 1e3


def _between(answer: Answer, began: float, ended: float) -> Answer:
    reads = [(at, read) for at, read in answer.reads if began <= at < ended]
    return Answer(sent_at=answer.sent_at, reads=reads, is_whole=True)


def _ms(seconds: Sequence[float]) -> dict[str, float | int]:
    return percentiles([one * 1e3 for one in seconds], digits=3)
