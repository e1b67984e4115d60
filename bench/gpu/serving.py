"""One prefill and one decode worker on one GPU: hand-overs, and times between tokens under load.

    PYTHONPATH=.:tests python -m bench.gpu.serving [--toy]

An 8-billion-parameter shape in bfloat16 with random weights, made here. A prompt's tokens after a
hand-over and those of one worker may part in bfloat16: how many are equal before is told, and held
to nothing (`bench.gpu.hand_over` holds a float32 model to all of them).
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from support.eventually import soon
from support.mini_router import Heard, MiniRouter, mini_router
from support.processes import Process, process
from support.redis_server import redis_server
from support.worker_cluster import prompt

from bench.gpu.shapes import LLAMA_8B
from bench.record import percentiles, record
from bench.row import Row, tell
from protocol.ids import WorkerId
from protocol.messages import Finished, Landed, Sampling
from protocol.store.address import RedisAddress
from tools.make_checkpoint import Shape, make_checkpoint

WORKERS = ("prefill-0", "decode-0")
WITHIN_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    shape: Shape
    device: str
    flags: tuple[str, ...]
    """Of both workers."""
    prompt_tokens: int
    max_tokens: int
    streams: int


REAL = Scale(
    shape=replace(LLAMA_8B, shard_bytes=4 << 30), device="cuda",
    flags=("--kv-bytes", str(24 << 30), "--token-budget", "2048", "--max-running", "64"),
    prompt_tokens=1024, max_tokens=128, streams=32,
)  # fmt: skip
SMALL = Scale(
    shape=Shape(context=256), device="cpu",
    flags=("--kv-blocks", "96", "--block-tokens", "8", "--threads", "1", "--token-budget", "32",
           "--max-running", "8"),
    prompt_tokens=48, max_tokens=8, streams=4,
)  # fmt: skip


def main() -> int:
    asked = _arguments()
    scale = SMALL if asked.toy else REAL
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "model"
        make_checkpoint(model, scale.shape, device=scale.device)
        redis = stack.enter_context(redis_server())
        workers = [
            stack.enter_context(process(
                f"{worker.partition('-')[0]}_worker", "--model", str(model), "--redis", redis.url,
                "--worker", worker, "--dtype", scale.shape.dtype, "--device", scale.device,
                *scale.flags,
            ))
            for worker in WORKERS
        ]  # fmt: skip
        asyncio.run(_driven(redis.address, scale, workers))
    return 0


async def _driven(redis: RedisAddress, scale: Scale, workers: Sequence[Process]) -> None:
    async with asyncio.timeout(WITHIN_S), mini_router(redis) as router:
        await soon(lambda: _is_ready(router) or not _live(workers), WITHIN_S, "workers")
        assert _live(workers), "a worker ended at its start"
        await _equal_tokens(router, scale)
        await _streams(router, scale, count=1, name="alone")
        await _streams(router, scale, count=scale.streams, name="load")


def _is_ready(router: MiniRouter) -> bool:
    return all(WorkerId(worker) in router.beats for worker in WORKERS)


def _live(workers: Sequence[Process]) -> bool:
    return all(worker.exit_code is None for worker in workers)


async def _equal_tokens(router: MiniRouter, scale: Scale) -> None:
    tokens, rule = prompt(scale.prompt_tokens, salt=1), _rule(scale)
    _, apart = await router.disaggregated("apart", tokens, rule)
    local = await router.decode("decode-0", "local", tokens, rule, salt="other")
    await router.ended(local)
    pairs = zip(apart.tokens, local.tokens, strict=True)
    equal = next((n for n, (one, other) in enumerate(pairs) if one != other), len(local.tokens))
    told = f"{equal} of {scale.max_tokens} equal one worker's before the first other"
    tell(Row(part="tokens after a hand-over", result=told, passed=equal > 0))


async def _streams(router: MiniRouter, scale: Scale, *, count: int, name: str) -> list[Heard]:
    """So many prompts at once, each handed over; what the decode worker said."""
    rule = _rule(scale)
    async with asyncio.TaskGroup() as tasks:
        started = [
            tasks.create_task(
                router.disaggregated(
                    f"{name}-{n}", prompt(scale.prompt_tokens, salt=100 + n), rule
                ),
                name=f"{name}-{n}",
            )
            for n in range(count)
        ]
    heard = [task.result()[1] for task in started]
    assert all(isinstance(one.ending, Finished) for one in heard), [one.ending for one in heard]
    _tell_times(name, scale, heard)
    return heard


def _tell_times(name: str, scale: Scale, heard: list[Heard]) -> None:
    gaps_ms = [1e3 * (b - a) for one in heard for a, b in pairwise(one.at_s)]
    landed = [one for one in (each.find(Landed) for each in heard) if isinstance(one, Landed)]
    between = percentiles(gaps_ms)
    moved, took_s = sum(one.bytes_moved for one in landed), sum(one.fetch_s for one in landed)
    transports = sorted({one.transport for one in landed})
    results = {
        "between_tokens_ms": between, "bytes": moved, "fetch_s": took_s, "transports": transports,
    }  # fmt: skip
    record(
        "gpu_serving",
        conditions={
            "case": name, "streams": len(heard), "device": scale.device,
            "prompt_tokens": scale.prompt_tokens, "max_tokens": scale.max_tokens,
        },
        results=results,
    )  # fmt: skip
    tell(Row(
        part=f"between tokens, {len(heard)} at once",
        result=f"p50 {between['p50']:.1f}, p99 {between['p99']:.1f}, max {between['max']:.1f} ms",
    ))  # fmt: skip
    tell(Row(
        part=f"hand-over, {len(heard)} at once",
        result=f"{moved / 1e6:.1f} MB by {', '.join(transports)}, {took_s / len(heard):.3f} s each",
    ))  # fmt: skip


def _rule(scale: Scale) -> Sampling:
    return Sampling(seed=1, max_tokens=scale.max_tokens, temperature=0.0, ignore_eos=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a tiny shape on the host")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
