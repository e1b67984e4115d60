"""A part of a stage: a process with a time of its own, and what came of it.

A part's failure is its own: whatever it did to the device or to itself, the others still run.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.row import Row, told

REASON_CHARS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`python ARGUMENTS ...`."""

    name: str
    arguments: Sequence[str]
    within_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    part: Part
    rows: Sequence[Row]
    failure: str
    """Why it is not to be trusted, or ""."""
    took_s: float


def run_part(part: Part, *, logs: Path, within_s: float) -> Outcome:
    """Runs it, at most as long as is left of the stage; its output is in `logs`/NAME.log.

    What it started ends with it, by process group. Raises nothing that the part can cause.
    """
    log = logs / f"{part.name}.log"
    started_s, within_s = time.monotonic(), min(part.within_s, within_s)
    if within_s <= 0:
        return Outcome(part=part, rows=(), failure="no time was left", took_s=0.0)
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, *part.arguments], stdout=written, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env={**os.environ, **part.environment},
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(within_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
    output = log.read_text(errors="replace")
    failure = "" if code == 0 else _reason(code, output, within_s)
    return Outcome(
        part=part, rows=tuple(told(output)), failure=failure,
        took_s=time.monotonic() - started_s,
    )  # fmt: skip


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Workers that a part left behind hold the device's memory."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(code: int | None, output: str, within_s: float) -> str:
    if code is None:
        return f"not done within {within_s:.0f} s"
    lines = [line for line in output.splitlines() if line.strip()]
    said = lines[-1].strip() if lines else "nothing said"
    return f"exit code {code}: {said}"[:REASON_CHARS]
