"""Runs one contestant: its two processes, their deadline, and whatever goes wrong with them.

Called by `bench.kvtransfer.__main__`. A hang, a crash or a wrong byte ends as an `Outcome` that
says so; what was measured before it stays.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import msgspec

from bench.kvtransfer.aside import GONE, Aside
from bench.kvtransfer.case import Case
from bench.kvtransfer.catalogue import Mover
from bench.kvtransfer.mover import Setting, Side
from bench.kvtransfer.side import Job, Outcome
from tools.python_path import python_path

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
    """What the sink told, and why the pair did not end well, or ""."""
    socks = Aside.pair()
    sides: tuple[Side, Side] = ("source", "sink")
    with contextlib.ExitStack() as stack:
        ends = []
        for side, sock in zip(sides, socks, strict=True):
            job = Job(mover=mover, side=side, setting=setting, aside_fd=sock.fileno(), cases=cases)
            lines = stack.enter_context(tempfile.TemporaryFile())
            errors = stack.enter_context(tempfile.TemporaryFile())
            ends.append(stack.enter_context(_End(job, lines=lines, errors=errors)))
        for sock in socks:
            sock.close()
        _wait(ends, within_s)
        whys = [why for end in ends if (why := end.why())]
        blamed = [why for why in whys if GONE not in why] or whys
        return ends[-1].outcomes(), "; ".join(blamed)


def _wait(ends: Sequence["_End"], within_s: float) -> None:
    """Until all have ended, or the time is over, or one has not followed the other."""
    until_s = time.monotonic() + within_s
    while (running := sum(end.runs for end in ends)) and time.monotonic() < until_s:
        if running < len(ends):
            until_s = min(until_s, time.monotonic() + _EXIT_S)
        time.sleep(_LOOK_S)


class _End:
    """One process of a pair; it is gone when the `with` ends."""

    def __init__(self, job: Job, *, lines: IO[bytes], errors: IO[bytes]) -> None:
        self._side = job.side
        self._lines, self._errors = lines, errors
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.kvtransfer.side", msgspec.json.encode(job).decode()],
            stdin=subprocess.DEVNULL,
            stdout=self._lines,
            stderr=self._errors,
            pass_fds=(job.aside_fd,),
            env=environment(job.setting, job.mover.environment),
            cwd=_ROOT,
            start_new_session=True,
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def why(self) -> str:
        """How it ended, or "" when well."""
        if self.runs:
            return f"the {self._side} hung"
        code = self._process.returncode
        if not code:
            return ""
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the {self._side} {how}{self._last_words()}"

    def outcomes(self) -> list[Outcome]:
        """What it told, among what libraries print."""
        self._lines.seek(0)
        found = []
        for line in self._lines.read().splitlines():
            try:
                found.append(msgspec.json.decode(line, type=Outcome))
            except msgspec.DecodeError:
                continue
        return found

    def _last_words(self) -> str:
        """The last exception's line, or of a library's log the last."""
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if _EXCEPTION.match(line)] or lines
        return f": {lines[-1][:300]}" if lines else ""

    def __enter__(self) -> "_End":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.runs:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_EXIT_S)


def environment(setting: Setting, extra: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """What a measured process runs in."""
    variables = {**os.environ, "PYTHONPATH": python_path(_ROOT), **dict(extra)}
    variables.pop("GLIBC_TUNABLES", None)
    if setting == "tuned":
        variables["GLIBC_TUNABLES"] = NON_TEMPORAL
    return variables
