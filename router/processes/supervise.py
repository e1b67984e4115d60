"""The process that starts the others of a router, starts them again, and ends with them.

It keeps the port and passes signals on; it answers no request.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from protocol.errors import SettingsError
from protocol.process.backoff import Backoff
from protocol.process.listening import bound_socket
from protocol.process.run import ECHO_S, EXIT_FAILED, Shutdown
from router.processes.siblings import socket_of
from router.settings import RouterSettings

KILL_AFTER_S = 5.0
"""What a process gets on top of its linger and drain before it is killed."""
MAX_PATH_BYTES = 90
"""A socket's path has 107 at most."""
log = logging.getLogger("baton.router")


async def supervise(settings: RouterSettings, argv: Sequence[str], stop: Shutdown) -> int:
    """Until asked to stop, or a process ends that has never served, for another would do the same;
    then until each has drained. `argv` is the command line that `settings` came from. The exit code
    is 0, or that of a process which failed. Raises SettingsError when the port cannot be had."""
    with _sockets_folder() as folder, kept_port(settings) as port:
        where = {"port": port, "processes": settings.processes}
        log.info("processes", extra={"host": settings.host, **where})
        flags = ("--port", str(port), "--siblings", str(folder), "--parent-pid", str(os.getpid()))
        command = (sys.executable, "-m", "router", *argv, "--processes", "1", *flags)
        kept = [
            _Process((*command, "--process", str(number)), socket_of(folder, number), stop)
            for number in range(settings.processes)
        ]
        end_s = settings.linger_s + settings.drain_or_request_s
        async with asyncio.TaskGroup() as tasks:
            for number, process in enumerate(kept):
                tasks.create_task(process.keep(end_s), name=f"process {number}")
        return max(process.exit_code for process in kept)


@contextmanager
def kept_port(settings: RouterSettings) -> Iterator[int]:
    """The port of the HTTP API, found if it is 0, which the processes can listen on and nobody else
    of another user can. Raises SettingsError when it cannot be had."""
    with bound(settings, shared=False) as alone:  # else another router's would be shared
        port: int = alone.getsockname()[1]
    with bound(settings.model_copy(update={"port": port}), shared=True):
        yield port


def bound(settings: RouterSettings, *, shared: bool) -> socket.socket:
    """A socket on the port of the API, of which those that are `shared` take turns. It does not
    listen yet. Raises SettingsError when it cannot be had."""
    return bound_socket(settings.host, settings.port, setting="port", shared=shared)


class _Process:
    """One of them, started again whenever it dies."""

    def __init__(self, command: Sequence[str], path: Path, stop: Shutdown) -> None:
        self._command = command
        self._path = path
        self._stop = stop
        self._backoff = Backoff()
        self.exit_code = 0
        """Of its last incarnation, once that was asked to end or could not start."""

    async def keep(self, end_s: float) -> None:
        """Returns once asked to stop and ended; asks the others to when it cannot start."""
        delay_s, has_served = 0.0, False
        while not self._stop.asked.is_set():
            began_at = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL
            )
            try:
                await self._until_ended_or_asked(process)
                if process.returncode is None:
                    await self._end(process, end_s)
            finally:
                _kill(process)
            served, self.exit_code = self._path.exists(), _as_exit_code(process.returncode)
            if self._stop.asked.is_set():
                break
            has_served = has_served or served
            if not has_served:
                self._stop.ask("a process could not start")
                break
            self._path.unlink(missing_ok=True)
            lived_s = time.monotonic() - began_at if served else 0.0
            delay_s = self._backoff.delay_s(previous_s=delay_s, lived_s=lived_s)
            self._say_died(process, delay_s)
            self.exit_code = 0
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.asked.wait(), delay_s)

    def _say_died(self, process: asyncio.subprocess.Process, delay_s: float) -> None:
        died = {"pid": process.pid, "exit_code": process.returncode, "delay_s": delay_s}
        remedy = "none if it was killed, else its log says why; its open streams are lost"
        log.warning("process died", extra={**died, "remedy": remedy})

    async def _until_ended_or_asked(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(process.wait(), name="ended")
            asked = tasks.create_task(self._stop.asked.wait(), name="asked")
            await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            asked.cancel()

    async def _end(self, process: asyncio.subprocess.Process, end_s: float) -> None:
        """Drains it; a second signal to us is one to it."""
        _terminate(process)
        async with asyncio.TaskGroup() as tasks:
            hurry = tasks.create_task(self._hurry(process), name="hurry")
            try:
                await asyncio.wait_for(process.wait(), end_s + KILL_AFTER_S)
            except TimeoutError:
                _kill(process)
                await process.wait()
            finally:
                hurry.cancel()

    async def _hurry(self, process: asyncio.subprocess.Process) -> None:
        await self._stop.hurry.wait()
        await asyncio.sleep(2 * ECHO_S)  # or it would be taken for the first one's echo
        _terminate(process)


@contextmanager
def _sockets_folder() -> Iterator[Path]:
    """Of this user alone."""
    with TemporaryDirectory(prefix="baton-", ignore_cleanup_errors=True) as folder:
        if len(os.fsencode(folder)) > MAX_PATH_BYTES:
            raise SettingsError(f"TMPDIR: {folder!r}: too long for sockets; set a shorter one")
        yield Path(folder)


def _terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


def _as_exit_code(returncode: int | None) -> int:
    """That of a process which a signal ended is 1, as of one that failed."""
    return EXIT_FAILED if returncode is None or returncode < 0 else returncode
