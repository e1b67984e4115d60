"""The engine in one process, no HTTP, beside transformers' continuous batching and OpenVINO GenAI.

    python -m bench.engine [--repeats 3] [--jobs 64] [--openvino VENV/bin/python]

On a random 155.7 M-parameter Llama shape in bfloat16 (`tools.make_checkpoint.BENCH`, made once
into the user's cache). The sides take turns within every repeat, so that a busy machine slows
them alike; a ratio is the median of the repeats' ratios. A peer that does not end a run in
time (`workload.RUN_LIMIT_S`) is left out of the rest, and the results say so.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

from bench.baton_side import BatonSide
from bench.checkpoint import bench_checkpoint
from bench.openvino_side import OpenVinoSide
from bench.record import record
from bench.transformers_side import TransformersSide
from bench.workload import (
    CONTEXT,
    DECODE_STEPS,
    MAX_RUNNING,
    TOKEN_BUDGET,
    Prompts,
    Side,
    TooSlow,
    decode_tokens_per_s,
    mixed_tokens_per_s,
    prefill_tokens_per_s,
)

BARS = {
    "transformers": {"prefill_512": 1.5, "decode_b8": 2.5, "mixed": 3.5},
    "openvino": {"decode_b1": 0.75, "decode_b8": 0.75, "decode_b32": 0.75, "mixed": 0.65},
}
"""At least so many times the peer's tokens per second."""
Measure = Callable[[Side, Prompts], float]


def measures(num_jobs: int) -> Mapping[str, Measure]:
    return {
        "prefill_512": lambda side, prompts: prefill_tokens_per_s(side, prompts),
        "decode_b1": lambda side, prompts: decode_tokens_per_s(side, prompts, batch=1),
        "decode_b8": lambda side, prompts: decode_tokens_per_s(side, prompts, batch=8),
        "decode_b32": lambda side, prompts: decode_tokens_per_s(side, prompts, batch=32),
        "mixed": lambda side, prompts: mixed_tokens_per_s(side, prompts, num_jobs=num_jobs),
    }


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    path = bench_checkpoint()
    sides: list[Side] = [
        BatonSide(path, dtype=arguments.dtype),
        *(
            []
            if arguments.alone
            else [TransformersSide(path, dtype=arguments.peer_dtype or arguments.dtype)]
        ),
    ]
    if arguments.openvino is not None:
        sides.append(OpenVinoSide(path, python=arguments.openvino, threads=arguments.threads))
    try:
        chosen = {
            name: measure
            for name, measure in measures(arguments.jobs).items()
            if not arguments.only or name in arguments.only
        }
        conditions = _conditions(arguments, sides)
        rates, late = _measure(sides, chosen, repeats=arguments.repeats)
    finally:
        for side in sides:
            side.close()
    record("engine", conditions={**conditions, "too_slow": late}, results=_results(rates))


def _measure(
    sides: list[Side], chosen: Mapping[str, Measure], *, repeats: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """[measure][side] -> tokens per second of each repeat, after one warm-up each; and
    [side] -> why it was left out. Those are closed and taken from `sides`."""
    for side in sides:
        prefill_tokens_per_s(side, Prompts("warm-up"), num_tokens=CONTEXT)
        decode_tokens_per_s(side, Prompts("warm-up too"), batch=1)
    rates: dict[str, dict[str, list[float]]] = {}
    late: dict[str, str] = {}
    for repeat in range(repeats):
        for name, measure in chosen.items():
            for side in list(sides):
                try:
                    rate = measure(side, Prompts(f"{name} {repeat}"))
                except TooSlow as error:
                    late[side.name] = f"{name}: {error}"
                    sides.remove(side)
                    side.close()
                    continue
                rates.setdefault(name, {}).setdefault(side.name, []).append(rate)
                print(f"{repeat} {name} {side.name} {rate:.1f} tok/s", file=sys.stderr)
    return rates, late


def _results(rates: dict[str, dict[str, list[float]]]) -> dict[str, object]:
    """Medians, and of each peer the median ratio over the repeats it took part in."""
    results: dict[str, object] = {}
    for name, by_side in rates.items():
        entry: dict[str, object] = {
            side: round(median(values), 1) for side, values in by_side.items()
        }
        ours = by_side.get("baton", [])
        for side, values in by_side.items():
            if side == "baton" or not ours:
                continue
            # A peer takes part from the first repeat on, so a shorter list is its first ones.
            entry[f"over_{side}"] = round(
                median(a / b for a, b in zip(ours, values, strict=False)), 2
            )
            if name in BARS[side]:
                entry[f"bar_over_{side}"] = BARS[side][name]
        results[name] = entry
    return results


def _conditions(arguments: argparse.Namespace, sides: list[Side]) -> dict[str, object]:
    return {
        "model": "llama shape, 155.7 M parameters, random",
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "mixed_requests": arguments.jobs,
        "context": CONTEXT,
        "decode_steps": DECODE_STEPS,
        "max_running": MAX_RUNNING,
        "token_budget": TOKEN_BUDGET,
        "unit": "tokens per second",
        "versions": {side.name: side.version for side in sides},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The engine beside transformers.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=64, help="requests of the mixed workload")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--peer-dtype",
        choices=("bfloat16", "float32"),
        help="of transformers, whose bfloat16 is slow where the CPU has none (default: --dtype)",
    )
    parser.add_argument("--alone", action="store_true", help="leave transformers out")
    parser.add_argument("--only", nargs="*", choices=sorted(measures(0)), default=[])
    parser.add_argument(
        "--openvino", type=Path, help="Python of a venv with openvino-genai and optimum-intel"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
