"""What long prompts do to running streams: colocated workers beside prefill and decode apart.

    python -m bench.interference [--streams 4] [--prompt-tokens 1024] [--seconds 20]

Two clusters of the same two workers, each pinned to one core: colocated (two decode workers that
prefill their own requests) and disaggregated (one prefill, one decode, always apart). Both serve
the same steady streams, first alone, then while long prompts arrive at a fixed rate. The router,
the supervisor and this client run on the same machine, unpinned; `decode_workers_without_a_core_s`
tells how much others on the machine disturbed the measurement.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.record import percentiles, record
from bench.sse import Stream, stream
from bench.up import ROOT, Up, queued_s

SHAPE = {
    "--hidden": 512,
    "--layers": 8,
    "--heads": 8,
    "--kv-heads": 4,
    "--mlp": 1408,
    "--vocab": 8192,
    "--context": 4096,
}
"""About 33 million parameters: a prompt of 1,024 tokens takes a core most of a second."""
MODES = {
    "colocated": ["--prefill", "0", "--decode", "2"],
    "disaggregated": ["--prefill", "1", "--decode", "1", "--local-prefill", "never"],
}
SETTLE_S = 3.0
"""Left out at the start of each phase, while streams begin and buffers fill."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What both clusters are given."""

    streams: int
    prompt_tokens: int
    prompt_every_s: float
    seconds: float
    dtype: str


def main() -> None:
    load, checkpoint = _options()
    with tempfile.TemporaryDirectory(prefix="interference-") as directory:
        model = checkpoint or _make_checkpoint(Path(directory) / "model", dtype=load.dtype)
        results: dict[str, Any] = {}
        for mode, flags in MODES.items():
            common = ["--model", str(model), "--dtype", load.dtype, "--pin"]
            with Up([*common, *flags]) as up:
                results[mode] = asyncio.run(_measure(up, load))
    conditions = {**asdict(load), "model": "random weights", "shape": SHAPE, "pinned": True}
    record("interference", conditions=conditions, results={**results, **_compare(results)})


def _options() -> tuple[Load, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--prompt-every-s", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--checkpoint", type=Path, help="instead of random weights")
    given = vars(parser.parse_args())
    checkpoint = given.pop("checkpoint")
    return Load(**given), checkpoint


def _make_checkpoint(path: Path, *, dtype: str) -> Path:
    flags = [str(word) for pair in SHAPE.items() for word in pair]
    command = [sys.executable, "-m", "tools.make_checkpoint", str(path), "--dtype", dtype]
    subprocess.run([*command, *flags], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return path


async def _measure(up: Up, load: Load) -> dict[str, Any]:
    """Streams alone for a while, then with prompts; the same streams in both phases."""
    letter = up.post("/tokenize", {"model": up.model, "prompt": "a"})["tokens"][-1]
    steady = {
        "model": up.model,
        "max_tokens": 1_000_000,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {str(letter): 100},  # random weights say noise; every token shows as text
    }
    prompts: list[Stream] = []
    await asyncio.to_thread(_warm_up, up, load, steady)
    decodes = up.child_pids("decode_worker")
    alone = await _phase(up, load, steady, prompts=None)
    before_s = sum(map(queued_s, decodes))
    beside = await _phase(up, load, steady, prompts=prompts)
    queued = sum(map(queued_s, decodes)) - before_s
    return {
        "itl_alone_s": percentiles(alone),
        "itl_with_prompts_s": percentiles(beside),
        "stream_tokens_per_s": round(len(beside) / (load.seconds - SETTLE_S), 1),
        "ttft_s": percentiles([p.first_token_s for p in prompts if p.token_times]),
        "prompts_without_token": sum(not p.token_times for p in prompts),
        "decode_workers_without_a_core_s": round(queued, 2),  # others on the machine took it
        "routes": sorted({p.route.partition(";")[0] for p in prompts}),
    }


def _warm_up(up: Up, load: Load, steady: dict[str, Any]) -> None:
    """Lets each worker measure its speeds and touch its memory."""
    for seed in range(4):
        prompt = _prompt(load, random.Random(f"warm {seed}"))
        up.post("/v1/completions", {**steady, "prompt": prompt, "max_tokens": 8})


async def _phase(
    up: Up, load: Load, steady: dict[str, Any], *, prompts: list[Stream] | None
) -> list[float]:
    """Inter-token latencies of the steady streams within one phase's window."""
    streams: list[Stream] = []
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_steady(up, load, steady, index, streams), name=f"stream {index}")
            for index in range(load.streams)
        ]
        await asyncio.sleep(SETTLE_S)
        if prompts is not None:
            await _send_prompts(up, load, steady, prompts, until=began + load.seconds)
        await asyncio.sleep(max(0.0, began + load.seconds - time.monotonic()))
        for task in running:
            task.cancel()
    window = {"after": began + SETTLE_S, "before": began + load.seconds}
    return [gap for one in streams for gap in one.gaps_s(**window)]


async def _steady(
    up: Up, load: Load, steady: dict[str, Any], index: int, streams: list[Stream]
) -> None:
    """One stream after another for as long as the phase lasts."""
    rng = random.Random(f"steady {index}")
    while True:
        body = {**steady, "prompt": [rng.randrange(300, 8000) for _ in range(32)]}
        await stream(up.url, {**body, "max_tokens": 2000}, streams)


async def _send_prompts(
    up: Up, load: Load, steady: dict[str, Any], prompts: list[Stream], *, until: float
) -> None:
    """Prompts no cache knows, at a fixed rate whatever becomes of them; waits for the last."""
    rng = random.Random("prompts")
    async with asyncio.TaskGroup() as tasks:
        while time.monotonic() < until:
            body = {**steady, "prompt": _prompt(load, rng), "max_tokens": 4}
            tasks.create_task(stream(up.url, body, prompts), name=f"prompt {len(prompts)}")
            await asyncio.sleep(load.prompt_every_s)


def _prompt(load: Load, rng: random.Random) -> list[int]:
    return [rng.randrange(300, 8000) for _ in range(load.prompt_tokens)]


def _compare(results: dict[str, Any]) -> dict[str, Any]:
    """Where each mode wins, by what was measured; ties go to neither."""
    together, apart = results["colocated"], results["disaggregated"]
    measures = {
        f"{name} {rank}": (together[name][rank], apart[name][rank])
        for name in ("itl_alone_s", "itl_with_prompts_s", "ttft_s")
        for rank in ("p50", "p99")
    }
    measures["stream_tokens_per_s"] = (
        -together["stream_tokens_per_s"],
        -apart["stream_tokens_per_s"],
    )
    return {
        "disaggregated_p99_over_its_own_alone": _ratio(apart),
        "colocated_p99_over_its_own_alone": _ratio(together),
        "colocated_wins": [name for name, (a, b) in measures.items() if a < b],
        "disaggregated_wins": [name for name, (a, b) in measures.items() if b < a],
    }


def _ratio(mode: dict[str, Any]) -> float:
    ratio: float = mode["itl_with_prompts_s"]["p99"] / mode["itl_alone_s"]["p99"]
    return round(ratio, 2)


if __name__ == "__main__":
    main()
