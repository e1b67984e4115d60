"""SIGTERM before a process serves: it ends, whatever it was about to do, also as process 1."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.eventually import WITHIN_S, eventually
from support.processes import ROOT

from tools.python_path import python_path

NOBODY = "redis://127.0.0.1:1/0"
WORKER = ("--model", "models/tiny", "--redis", NOBODY, "--device", "cpu", "--threads", "1")
KINDS = {
    "router": ("router", "--redis", NOBODY, "--port", "0"),
    "prefill": ("prefill_worker", *WORKER),
    "decode": ("decode_worker", *WORKER),
    "baton": ("controlplane.cli.entry", "up", "--port", "0", "--device", "cpu"),
}
DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.5)
"""After exec."""
ENDED = {0, -signal.SIGTERM, 128 + signal.SIGTERM}
"""Well, or before there was a handler, or of a command that was not carried out."""
MAX_CPU_S = 1.0
"""Of the process after the signal: seconds that a machine with a core to spare would take."""
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def begun(words: tuple[str, ...], *before: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(
        [*before, sys.executable, "-m", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": python_path(ROOT), **env},
    )
    try:
        yield made
    finally:
        made.kill()
        made.wait()


def ends_after(kind: str, delay_s: float) -> None:
    with begun(KINDS[kind]) as process:
        time.sleep(delay_s)
        used_s = cpu_s(process.pid)
        process.terminate()
        eventually(lambda: is_over(process.pid), WITHIN_S, f"{kind} has ended after {delay_s} s")
        more_s = cpu_s(process.pid) - used_s  # of a zombie: all it used
        assert process.wait() in ENDED
        assert more_s < MAX_CPU_S, f"{kind} used {more_s} s more"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def is_over(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_a_router_that_has_just_begun_ends(delay_s: float) -> None:
    ends_after("router", delay_s)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_process_ends_twenty_times_whenever_it_is_asked(kind: str) -> None:
    for delay_s in DELAYS_S:
        for _ in range(20):
            ends_after(kind, delay_s)


can_unshare = shutil.which("unshare") is not None and os.geteuid() == 0


@pytest.mark.skipif(not can_unshare, reason="makes a namespace of process ids: root's alone")
@pytest.mark.parametrize("kind", KINDS)
def test_as_process_1_it_ends_while_it_still_imports(kind: str, tmp_path: Path) -> None:
    """The kernel keeps signals from process 1 that it has no handler for: what it imports here
    never ends, so it is asked long before it could drain."""
    there = tmp_path / "importing"
    endless = f"import time\nopen({str(there)!r}, 'x').close()\ntime.sleep(3600)\n"
    (tmp_path / "pydantic.py").write_text(endless)
    path = f"{tmp_path}:{python_path(ROOT)}"
    with begun(KINDS[kind], "unshare", "--fork", "--pid", "--kill-child", PYTHONPATH=path) as outer:
        eventually(there.exists, WITHIN_S, "it imports")
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        os.kill(int(children.read_text()), signal.SIGTERM)
        assert outer.wait(timeout=WITHIN_S) in ENDED
