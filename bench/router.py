"""What a router costs, beside sglang-router and Dynamo's frontend, in one run.

    make bench-router
    python -m bench.router [--rounds 3] [--seconds 10] [--only baton] [--results DIR]

Each router has a core of its own; its engines, mock workers and clients share the other. CPU
seconds are of the router's processes, user and system, by the kernel's count. Baton's engines
detokenise on the other core, as its workers do: what that takes is in nobody's figure but theirs.
Prints the bars, and appends a line to `bench/results/router.jsonl`.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read when the library is loaded

import uvloop

from bench.record import record
from bench.router_sim import measures
from bench.router_sim.bars import verdicts
from bench.router_sim.checkpoint import text_checkpoint
from bench.router_sim.contestants import (
    PACE_MS,
    Running,
    baton,
    dynamo_frontend,
    mock_worker,
    sglang_router,
)
from bench.router_sim.processes import OTHER_CORE
from protocol.text.tokenizer import Tokenizer

ENGINES = (1, 2, 8)
NUM_REQUESTS = 2_000
NUM_ALONE = 200
ANSWER_TOKENS = 16
Found = dict[str, list[Any]]
"""Each round's figure, by what it is of."""


def main() -> None:
    options = _options()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {OTHER_CORE})
    model, found = text_checkpoint(), dict[str, list[Any]]()
    load = os.getloadavg()[0]
    peers = {name: _version_of(name) for name in ("sglang-router", "ai-dynamo")}
    for round_ in range(options.rounds):
        for num in ENGINES:
            seed = 1000 * round_ + num
            _streams(found, partial(baton, model, num_decode=num), num, options.seconds, seed)
            if peers["sglang-router"] and not options.only:
                of = partial(sglang_router, model, num_workers=num)
                _streams(found, of, num, options.seconds, seed)
        _arrivals(found, partial(baton, model, num_decode=2), seed=1000 * round_)
        _direct(found, model, seed=1000 * round_)
        if peers["ai-dynamo"] and not options.only:
            _requests(found, partial(dynamo_frontend, model), seed=1000 * round_)
    results = {name: _middle(figures) for name, figures in found.items()}
    bars = verdicts(results)
    for bar in bars:
        print(bar)
    conditions = {
        "command": "python -m bench.router", "rounds": options.rounds, "load_before": load,
        "streams": measures.NUM_STREAMS, "pace_ms": PACE_MS, "seconds": options.seconds,
        "prompt_tokens": measures.PROMPT_TOKENS, "peers": peers,
    }  # fmt: skip
    shown = {**results, "rounds": found, "bars": [bar.shape() for bar in bars]}
    os.sched_setaffinity(0, cores)  # the record says how many there are
    record("router", conditions=conditions, results=shown)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of streams, each time")
    parser.add_argument("--only", choices=("baton",), help="no peers")
    return parser.parse_args()


Contestant = Callable[[], AbstractContextManager[Running]]


def _streams(found: Found, of: Contestant, num: int, seconds: float, seed: int) -> None:
    with of() as it:
        got = uvloop.run(measures.paced(it, seconds=seconds, pace_ms=PACE_MS, seed=seed))
    name = f"{it.name}, {num} engines"
    _note(found, f"CPU s a million chunks: {name}", got.cpu_s_a_million_chunks)
    _note(found, f"ITL p99 ms: {name}", got.itl_ms["p99"])


def _arrivals(found: Found, of: Contestant, *, seed: int) -> None:
    with of() as it:
        requests = measures.cpu_s_a_thousand(
            it, num=NUM_REQUESTS, num_tokens=ANSWER_TOKENS, seed=seed
        )
        _note(found, f"CPU s a thousand requests: {it.name}", uvloop.run(requests))
        _bursts(found, it, seed=seed)
        _note(found, f"alone ms: {it.name}", uvloop.run(_alone(it, seed)))


def _bursts(found: Found, it: Running, *, seed: int) -> None:
    """Three; the median goes on, of the times of the middle request."""
    bursts = [uvloop.run(measures.burst(it, seed=seed + 10 + each)) for each in range(3)]
    _note(found, f"burst TTFT p50 ms: {it.name}", median(one["p50"] for one in bursts))


def _direct(found: Found, model: Path, *, seed: int) -> None:
    with mock_worker(model) as it:
        _bursts(found, it, seed=seed)
        _note(found, f"alone ms: {it.name}", uvloop.run(_alone(it, seed)))
        _note(found, "burst's tokenising CPU ms", _tokenising_ms(it, model, seed=seed))


def _requests(found: Found, of: Contestant, *, seed: int) -> None:
    with of() as it:
        requests = measures.cpu_s_a_thousand(
            it, num=NUM_REQUESTS, num_tokens=ANSWER_TOKENS, seed=seed
        )
        _note(found, f"CPU s a thousand requests: {it.name}", uvloop.run(requests))


async def _alone(it: Running, seed: int) -> float:
    return await measures.alone(it, num=NUM_ALONE, seed=seed + 20)


def _tokenising_ms(it: Running, model: Path, *, seed: int) -> float:
    """Of the prompts of one burst, by a tokeniser that has seen as many others as the router."""
    tokenizer = Tokenizer.load(model)
    for wish in measures.wishes(it, NUM_REQUESTS, num_tokens=1, seed=seed):
        tokenizer.encode(wish.prompt)
    asked = measures.wishes(it, measures.NUM_STREAMS, num_tokens=4, seed=seed + 10)
    began = time.thread_time()
    for wish in asked:
        tokenizer.encode(wish.prompt)
    return (time.thread_time() - began) * 1e3


def _note(found: Found, name: str, figure: float) -> None:
    found.setdefault(name, []).append(round(figure, 3))


def _middle(figures: list[float]) -> float:
    return round(median(figures), 3)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
