"""Runs one contestant: its two processes, their deadline, and whatever goes wrong with them.

Called by `bench.kvtransfer.__main__`. A hang, a crash or a wrong byte ends as an `Outcome` that
says so; what was measured before it stays.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from bench.kvtransfer.aside import Aside
from bench.kvtransfer.case import Case
from bench.kvtransfer.catalogue import Mover
from bench.kvtransfer.mover import Setting, Side
from bench.kvtransfer.side import Job, Outcome

_ROOT: Final = Path(__file__).resolve().parents[2]
_EXIT_S: Final = 10.0
"""What a process may take to end after the other has."""
_EXCEPTION: Final = re.compile(r"(\w+\.)*\w*(Error|Exception)\b")
_LOOK_S: Final = 0.02
NON_TEMPORAL: Final = "glibc.cpu.x86_non_temporal_threshold=0x8000"


def run(mover: Mover, setting: Setting, cases: Sequence[Case], *, within_s: float) -> list[Outcome]:
    """One outcome a case, in order. A case that ends the pair fails, and what comes after it is
    tried in a new pair; `within_s` bounds each pair."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(cases):
        told, why = _run_once(mover, setting, tuple(cases[len(outcomes) :]), within_s=within_s)
        outcomes += told
        if len(outcomes) < len(cases):
            outcomes.append(Outcome(failed=why or "ended without a word"))
        elif why:
            outcomes[-1] = msgspec.structs.replace(outcomes[-1], remark=why)
    return outcomes


def _run_once(
    mover: Mover, setting: Setting, cases: tuple[Case, ...], *, within_s: float
) -> tuple[list[Outcome], str]:
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as lines:
        why = _Pair(mover, setting, cases, errors=errors, lines=lines).wait(within_s)
        lines.seek(0)
        errors.seek(0)
        return _decoded(lines), why and f"{why}{_why(errors)}"


class _Pair:
    def __init__(
        self,
        mover: Mover,
        setting: Setting,
        cases: tuple[Case, ...],
        *,
        errors: IO[bytes],
        lines: IO[bytes],
    ) -> None:
        ends = Aside.pair()
        self._processes: dict[Side, subprocess.Popen[bytes]] = {}
        sides: tuple[Side, Side] = ("source", "sink")
        for side, sock in zip(sides, ends, strict=True):
            job = Job(mover=mover, side=side, setting=setting, aside_fd=sock.fileno(), cases=cases)
            self._processes[side] = subprocess.Popen(
                [sys.executable, "-m", "bench.kvtransfer.side", msgspec.json.encode(job).decode()],
                stdin=subprocess.DEVNULL,
                stdout=lines if side == "sink" else subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(sock.fileno(),),
                env=environment(setting, mover.environment),
                cwd=_ROOT,
                start_new_session=True,
            )
        for sock in ends:
            sock.close()

    def wait(self, within_s: float) -> str:
        """Why it did not end well, or ""; none of its processes is left."""
        until_s = time.monotonic() + within_s
        while self._running() and time.monotonic() < until_s:
            if len(self._running()) < len(self._processes):
                until_s = min(until_s, time.monotonic() + _EXIT_S)
            time.sleep(_LOOK_S)
        hung = self._running()
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_EXIT_S)
        ends = [
            f"the {side} {'hung' if side in hung else _ending(process.returncode)}"
            for side, process in self._processes.items()
            if process.returncode
        ]
        return "; ".join(ends)

    def _running(self) -> list[Side]:
        return [side for side, process in self._processes.items() if process.poll() is None]


def environment(setting: Setting, extra: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """What a measured process runs in."""
    variables = {**os.environ, "PYTHONPATH": str(_ROOT), **dict(extra)}
    variables.pop("GLIBC_TUNABLES", None)
    if setting == "tuned":
        variables["GLIBC_TUNABLES"] = NON_TEMPORAL
    return variables


def _ending(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _decoded(lines: IO[bytes]) -> list[Outcome]:
    """The outcomes among what a process printed: libraries print there too."""
    found = []
    for line in lines.read().splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Outcome))
        except msgspec.DecodeError:
            continue
    return found


def _why(errors: IO[bytes]) -> str:
    """What a process said before it died; an exception's line before a library's log."""
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if _EXCEPTION.match(line)][:1] or lines
    return f": {lines[-1][:200]}" if lines else ""
