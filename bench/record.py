"""Writes one measurement: a JSON line on stdout and at the end of `NAME.jsonl`.

The file lies in `bench/results`, or in the folder that BENCH_RESULTS names; BENCH_COMMIT says which
commit is measured where git cannot. The conditions go with the numbers, because without them they
are worth nothing.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def record(name: str, *, conditions: Mapping[str, object], results: Mapping[str, object]) -> None:
    line = json.dumps(
        {
            "bench": name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "conditions": dict(conditions),
            "results": dict(results),
        }
    )
    folder = results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)


def results_folder() -> Path:
    return Path(os.environ.get("BENCH_RESULTS") or RESULTS)


def is_folder_named() -> bool:
    """Whether BENCH_RESULTS asks for whatever is measured, a toy's numbers too."""
    return bool(os.environ.get("BENCH_RESULTS"))


def machine() -> dict[str, object]:
    """What the numbers depend on. The load average tells whether the machine was ours alone."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "commit": commit(),
    }


def percentiles(values: Sequence[float], *, digits: int = 4) -> dict[str, float | int]:
    """p50, p99, max and count; only the count when there is nothing to rank."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)

    def at(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], digits)

    return {
        "p50": at(0.50),
        "p99": at(0.99),
        "max": round(ordered[-1], digits),
        "count": len(ordered),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def commit() -> str:
    """`git describe`, or "unknown" without git and BENCH_COMMIT."""
    if said := os.environ.get("BENCH_COMMIT"):
        return said
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=RESULTS.parent, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
