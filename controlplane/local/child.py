"""Keeps one child process running: starts it, reads its lines, restarts it when it dies.

A child is a process group of its own, so a Ctrl-C in the terminal reaches the supervisor alone,
and dies with the supervisor (`controlplane.local.die_with_parent`). Does not decide when to stop:
`stop` and `kill` are called.
"""

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.local.log_line import LogLine, parse_line
from protocol.errors import BatonError
from protocol.process.backoff import Backoff
from protocol.process.run import EXIT_FAILED
from protocol.process.settings import EXIT_BAD_CHECKPOINT, EXIT_BAD_SETTINGS

DIE_WITH_PARENT = str(Path(__file__).with_name("die_with_parent.py"))
MAX_LINE_BYTES = 64 << 10
PERMANENT_EXIT_CODES = frozenset({EXIT_BAD_SETTINGS, EXIT_BAD_CHECKPOINT})
"""What our processes exit with when only the operator can help: settings, checkpoint."""
MAX_FAILED_STARTS = 5
"""A child that was never ready and died this often is not going to be."""


class ChildFailed(BatonError):
    """A child cannot be started; the message is its own last word, the exit code ours to end
    with."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run, and under which name it is shown."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own."""
    not_inherited: frozenset[str] = frozenset()
    """Variables of the supervisor that it must not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted:
    child: str
    pid: int
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildDied:
    """A child ended without having been told to; it is started again after `delay_s`."""

    child: str
    exit_code: int
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildHung:
    """A child lives and has not answered for so long; it is killed, so `ChildDied` comes next."""

    child: str
    silent_s: float


ChildEvent = ChildStarted | ChildDied | ChildHung | LogLine
OnChildEvent = Callable[[ChildEvent], None]


class Child:
    """One child. `run` until `stop`; every method is called on the event loop's thread."""

    def __init__(
        self, spec: ChildSpec, *, on_event: OnChildEvent, backoff: Backoff | None = None
    ) -> None:
        self.name = spec.name
        self.restarts = -1
        self.was_ready = False
        """Set by the supervisor: from then on no death is taken for a failed start."""
        self._spec = spec
        self._on_event = on_event
        self._backoff = backoff or Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._last_lines: deque[LogLine] = deque(maxlen=20)
        self._stopping = asyncio.Event()
        self.ended = asyncio.Event()
        """Set once it does not run and will not run again."""

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> None:
        """Returns once stopped. Raises `ChildFailed` for a child that cannot start."""
        try:
            await self._keep()
        finally:
            self.ended.set()

    async def _keep(self) -> None:
        delay_s = 0.0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            exit_code = await self._run_once()
            if self._stopping.is_set():
                return
            self._raise_if_hopeless(exit_code)
            lived_s = time.monotonic() - started_at if self.was_ready else 0.0
            delay_s = self._backoff.delay_s(previous_s=delay_s, lived_s=lived_s)
            self._on_event(ChildDied(child=self.name, exit_code=exit_code, delay_s=delay_s))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    def stop(self) -> None:
        """Ask it to drain and end, and do not start it again."""
        self._stopping.set()
        self._terminate()

    def kill(self) -> None:
        """End it and its whole process group now."""
        self._stopping.set()
        if self.pid is not None:
            _signal_group(self.pid, signal.SIGKILL)

    def kill_hung(self, *, silent_s: float) -> None:
        """End it and its whole process group now; it is started again."""
        if self.pid is not None:
            self._on_event(ChildHung(child=self.name, silent_s=silent_s))
            _signal_group(self.pid, signal.SIGKILL)

    async def _run_once(self) -> int:
        self._last_lines.clear()
        python = (sys.executable, "-I", "-S", DIE_WITH_PARENT, str(os.getpid()))
        self._process = process = await asyncio.create_subprocess_exec(
            *python,
            *self._spec.command,
            env=_environment(self._spec),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_BYTES,
            process_group=0,
        )
        self.restarts += 1
        self._on_event(ChildStarted(child=self.name, pid=process.pid, restarts=self.restarts))
        if self._stopping.is_set():  # told to while it was being started
            self._terminate()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_lines(process), name=f"lines of {self.name}")
            try:
                return await process.wait()
            finally:  # also whatever it left in its group, which would hold the pipe open
                _signal_group(process.pid, signal.SIGKILL)
                await process.wait()

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                raw = error.partial
                if not raw:
                    return
            except asyncio.LimitOverrunError as error:
                raw = await process.stdout.readexactly(max(error.consumed, 1))
            text = raw.decode(errors="replace").rstrip()
            if text:
                line = parse_line(self.name, text)
                self._last_lines.append(line)
                self._on_event(line)

    def _raise_if_hopeless(self, exit_code: int) -> None:
        if self.was_ready:
            return
        if exit_code in PERMANENT_EXIT_CODES or self.restarts + 1 >= MAX_FAILED_STARTS:
            word = f"{self.name}: {self._last_word(exit_code)}"
            permanent = exit_code in PERMANENT_EXIT_CODES
            raise ChildFailed(word, exit_code=exit_code if permanent else EXIT_FAILED)

    def _last_word(self, exit_code: int) -> str:
        """Its last line that is no routine log event, else its exit code."""
        for line in reversed(self._last_lines):
            if line.is_plain:
                return line.text.removeprefix(f"{self.name}: ")
            if line.is_warning:
                return ": ".join([line.event, *str(line.fields.get("error", "")).splitlines()[-1:]])
        return f"ended with exit code {exit_code}"

    def _terminate(self) -> None:
        """Tells the process alone: what it has started is for it to drain."""
        if self._process is not None and self.pid is not None:
            self._process.terminate()


def _environment(spec: ChildSpec) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k.upper() not in spec.not_inherited}
    return {**inherited, **spec.env}


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it is gone, which is what a signal is for
        os.killpg(pid, number)
