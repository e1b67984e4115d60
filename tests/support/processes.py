"""Starts, kills and drains real processes of ours."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from support.eventually import START_S, eventually

from tools.python_path import python_path

ROOT = Path(__file__).parents[2]


class Process:
    """`python -m MODULE ...` from this checkout; what it writes goes to a file. `before`: what
    starts it, and becomes it."""

    def __init__(
        self, module: str, *flags: str, env: Mapping[str, str], before: Sequence[str] = ()
    ) -> None:
        self._written = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        environment = {**os.environ, "PYTHONPATH": python_path(ROOT), "OMP_NUM_THREADS": "1", **env}
        self._popen = subprocess.Popen(
            [*before, sys.executable, "-m", module, *flags],
            stdout=self._written,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        self.pid = self._popen.pid

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()

    @property
    def output(self) -> str:
        position = os.lseek(self._written.fileno(), 0, os.SEEK_CUR)
        text = os.pread(self._written.fileno(), max(position, 1 << 20), 0)
        return text.decode(errors="replace")

    @property
    def log(self) -> list[dict[str, object]]:
        """All events so far."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, object]]:
        """Log events of that name so far."""
        return [found for found in self.log if found["event"] == event]

    def kill(self) -> None:
        """SIGKILL: no last words."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()

    def ask(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._popen.send_signal(number)

    def wait(self, within_s: float = START_S) -> int:
        """Its exit code."""
        eventually(lambda: self.exit_code is not None, within_s, f"end of {self._popen.args!r}")
        return self._popen.returncode

    def close(self) -> None:
        self.kill()
        self._written.close()


@contextmanager
def process(
    module: str,
    *flags: str,
    env: Mapping[str, str] = MappingProxyType({}),
    before: Sequence[str] = (),
) -> Iterator[Process]:
    """`env` is added to ours; `before` as of `Process`."""
    started = Process(module, *flags, env=env, before=before)
    try:
        yield started
    except BaseException:
        sys.stderr.write(f"\n--- {module} {flags}\n{started.output[-6000:]}\n")
        raise
    finally:
        started.close()
