import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psutil
import pytest
from support.eventually import soon

from controlplane.local.child import (
    Child,
    ChildDied,
    ChildEvent,
    ChildFailed,
    ChildSpec,
    ChildStarted,
)
from controlplane.local.log_line import LogLine
from protocol.process.backoff import Backoff

T = TypeVar("T")
WAIT = "import time; time.sleep(60)"
QUICK = Backoff(first_s=0.001, limit_s=0.002)


def run(body: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(body, 30))


def stub(program: str) -> ChildSpec:
    return ChildSpec(name="stub", command=(sys.executable, "-c", program), env={"STUB": "yes"})


class Watched:
    """A child that runs Python, and all that it reported."""

    def __init__(self, program: str | ChildSpec) -> None:
        self.events: list[ChildEvent] = []
        spec = program if isinstance(program, ChildSpec) else stub(program)
        self.child = Child(spec, on_event=self.events.append, backoff=QUICK)

    @property
    def starts(self) -> list[ChildStarted]:
        return [event for event in self.events if isinstance(event, ChildStarted)]

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, LogLine)]

    async def until_line(self, text: str) -> None:
        await soon(lambda: text in self.lines, what=f"line {text}")


@asynccontextmanager
async def running(program: str | ChildSpec) -> AsyncIterator[Watched]:
    watched = Watched(program)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watched.child.run(), name="stub")
        try:
            yield watched
        finally:
            watched.child.kill()


def test_a_child_does_not_see_what_is_not_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    program = "import os; print(os.environ.get('OURS'), flush=True); import time; time.sleep(60)"
    command = (sys.executable, "-c", program)
    spec = ChildSpec(name="stub", command=command, not_inherited=frozenset({"OURS"}))

    async def body() -> None:
        async with running(spec) as watched:
            await watched.until_line("None")

    run(body())


def test_a_child_that_is_killed_is_started_again() -> None:
    async def body() -> None:
        async with running(f"print('up', flush=True); {WAIT}") as watched:
            watched.child.was_ready = True
            await watched.until_line("up")
            first = watched.child.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await soon(lambda: len(watched.starts) == 2)
            assert watched.child.pid != first
            assert ChildDied(child="stub", exit_code=-9, delay_s=0.001) in watched.events

    run(body())


def test_a_stopped_child_gets_a_term_signal_and_is_not_started_again() -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "print('up', flush=True); time.sleep(60)"
    )

    async def body() -> None:
        async with running(program) as watched:
            await watched.until_line("up")
            watched.child.stop()
            await watched.child.ended.wait()
            assert len(watched.starts) == 1
            assert not any(isinstance(event, ChildDied) for event in watched.events)

    run(body())


def test_an_exit_code_for_bad_settings_is_final_and_says_the_childs_own_words() -> None:
    program = "import sys; sys.stderr.write('prefill: port 7 is taken\\n'); sys.exit(2)"
    with pytest.raises(ChildFailed, match="stub: prefill: port 7 is taken"):
        run(Watched(program).child.run())


def test_the_childs_last_warning_is_its_last_word() -> None:
    line = '{"level": "error", "event": "checkpoint", "error": "model.norm: missing"}'
    program = f"import sys; print({line!r}); sys.exit(3)"
    with pytest.raises(ChildFailed, match=r"stub: checkpoint: model\.norm: missing"):
        run(Watched(program).child.run())


def test_a_child_that_never_gets_ready_is_given_up() -> None:
    watched = Watched("import sys; sys.exit(1)")
    with pytest.raises(ChildFailed, match="exit code 1"):
        run(watched.child.run())
    assert len(watched.starts) == 5


def test_what_a_dead_child_leaves_in_its_group_is_killed() -> None:
    program = (
        "import os, subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {WAIT!r}]); print(p.pid, flush=True); "
        f"{WAIT}"
    )

    async def body() -> None:
        async with running(program) as watched:
            await soon(lambda: bool(watched.lines))
            grandchild = int(watched.lines[0])
            watched.child.kill()
            await watched.child.ended.wait()
            await soon(lambda: not _alive(grandchild))

    run(body())


def test_a_child_dies_with_a_supervisor_that_is_killed() -> None:
    supervisor = (
        "import asyncio, sys\n"
        "from controlplane.local.child import Child, ChildSpec\n"
        f"spec = ChildSpec(name='stub', command=(sys.executable, '-c', {WAIT!r}))\n"
        "def show(event): print(event.pid, flush=True)\n"
        "asyncio.run(Child(spec, on_event=show).run())\n"
    )

    async def body() -> None:
        async with running(supervisor) as watched:
            await soon(lambda: bool(watched.lines))
            grandchild = int(watched.lines[0])
            await soon(lambda: _is_python(grandchild, WAIT))
            assert watched.child.pid is not None
            os.kill(watched.child.pid, signal.SIGKILL)
            await soon(lambda: not _alive(grandchild))

    run(body())


def test_a_line_longer_than_the_buffer_does_not_stop_the_reading() -> None:
    async def body() -> None:
        program = f"print('x' * 200_000, flush=True); print('after', flush=True); {WAIT}"
        async with running(program) as watched:
            await watched.until_line("after")

    run(body())


def test_a_child_gets_its_own_environment_on_top_of_ours() -> None:
    async def body() -> None:
        program = f"import os; print(os.environ['STUB'], 'PATH' in os.environ, flush=True); {WAIT}"
        async with running(program) as watched:
            await watched.until_line("yes True")

    run(body())


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_python(pid: int, program: str) -> bool:
    """Whether `die_with_parent` has become the program."""
    return _alive(pid) and psutil.Process(pid).cmdline()[1:] == ["-c", program]
