import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.eventually import eventually

from controlplane.checkout import ROOT

PROGRAM = """
import atexit, sys
from protocol.process.run import leave
atexit.register(print, "taken down")
print("last word", file=sys.stdout)
leave(3)
"""


def test_a_process_that_leaves_says_its_last_word_and_is_not_taken_down_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "last word\n")


LOADS = """
import sys, time
from protocol.process.run import load, run

class Gone:
    def flush(self):
        raise BrokenPipeError

async def main(shutdown):
    sys.stderr = Gone()
    shutdown.ask("test", exit_code=3)
    await load(lambda: time.sleep(60), shutdown)

sys.exit(run("test", main))
"""


def test_a_process_that_loads_leaves_when_asked_though_nobody_reads_what_it_says() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS], cwd=ROOT, timeout=30)
    assert done.returncode == 3


SLOW_TO_LEAVE = """
import asyncio, sys, time
from protocol.process.run import run

async def main(shutdown):
    await shutdown.asked.wait()
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 1.0)
    print("main is over", flush=True)
    return shutdown.exit_code

print("up", flush=True)
sys.exit(run("test", main))
"""


def test_a_second_signal_while_the_loop_closes_does_not_spoil_the_exit_code() -> None:
    with running(SLOW_TO_LEAVE) as process:
        assert next_line(process) == "up"
        eventually(lambda: not signal_is_default(process.pid, signal.SIGTERM))
        process.terminate()
        assert next_line(process) == "main is over"
        process.terminate()
        assert process.wait(timeout=30) == 0


ORPHAN = """
import asyncio, os, subprocess, sys, time
from protocol.process.run import run

async def main(shutdown):
    print("up", flush=True)
    await shutdown.asked.wait()
    await asyncio.sleep(4 * PARENT_CHECK_S)
    print("hurry" if shutdown.hurry.is_set() else "drained", flush=True)
    return shutdown.exit_code

from protocol.process.run import PARENT_CHECK_S
sys.exit(run("test", main, parent_pid=os.getppid()))
"""


SUPERVISOR = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
OF_MANY_THREADS = f"""
import threading, time
for _ in range(16):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
{SUPERVISOR}
"""


@pytest.mark.parametrize("supervisor", [SUPERVISOR, OF_MANY_THREADS])
def test_the_death_of_a_supervisor_asks_once_and_leaves_time_to_drain(supervisor: str) -> None:
    """Of several threads as well, each of whose deaths the kernel may tell."""
    with running(supervisor, ORPHAN) as process:
        assert next_line(process) == "up"
        process.kill()
        assert next_line(process) == "drained"


@contextmanager
def running(program: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def signal_is_default(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
    return not int(caught, 16) >> (number - 1) & 1
