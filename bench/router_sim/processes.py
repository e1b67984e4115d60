"""Processes of a measurement: each on a core, all ended with it, and what CPU they took."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tools.python_path import python_path

ROOT = Path(__file__).resolve().parents[2]
ROUTER_CORE, OTHER_CORE = 0, 1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    """`with Process([...], core=0) as process:` ends it, and what it started, afterwards."""

    def __init__(
        self, command: Sequence[str], *, core: int, env: Mapping[str, str] | None = None
    ) -> None:
        self._command = ["taskset", "-c", str(core), *command]
        self._env = {**os.environ, "PYTHONPATH": python_path(ROOT), **(env or {})}

    def __enter__(self) -> "Process":
        self._errors = tempfile.TemporaryFile()
        self._popen = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT, env=self._env,
            start_new_session=True,
        )  # fmt: skip
        self.pid = self._popen.pid
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in reversed(_tree(self.pid)):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self._popen.communicate()
        self._errors.close()

    def first_line(self) -> str:
        """What it prints first. SystemExit if it ends before."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline().decode()
        if not line:
            raise SystemExit(f"{self._command}: ended\n{self.errors()}")
        return line

    def until_answers(self, url: str, *, within_s: float = 60.0) -> None:
        """Returns when it answers 200. SystemExit when it does not."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and self._popen.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise SystemExit(f"{self._command}: {url} did not answer\n{self.errors()}")

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-4000:]

    def cpu_s(self) -> float:
        """Seconds that it and all that it started have computed, user and system."""
        return sum(map(_cpu_s, _tree(self.pid)))

    def resident_mib(self) -> float:
        return sum(map(_resident_mib, _tree(self.pid)))


def python(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", module, *flags]


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                pids += _tree(int(child))
        except OSError:
            continue  # it has just ended
    return pids


def _cpu_s(pid: int) -> float:
    """To a hundredth of a second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _resident_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
