"""Writes one measurement: a JSON line on stdout and at the end of `bench/results/NAME.jsonl`.

Called by every benchmark. The conditions go with the numbers, because without them they are
worth nothing.
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
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)


def machine() -> dict[str, object]:
    """What the numbers depend on. The load average tells whether the machine was ours alone."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "commit": _commit(),
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


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=RESULTS.parent, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
