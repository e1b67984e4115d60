"""How a process of ours starts and ends: signals, start-up errors, death of its supervisor.

SIGTERM and SIGINT ask to stop, with time to finish; a second one takes that time away. A mistake
of the operator is one line on stderr, not a traceback.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from protocol.errors import BatonError, CheckpointError, SettingsError
from protocol.process.settings import EXIT_BAD_CHECKPOINT, EXIT_BAD_SETTINGS

EXIT_FAILED = 1
PARENT_CHECK_S = 0.5
ECHO_S = 0.1
"""The kernel tells of a supervisor's death once for each of its threads: one wish to end."""
NUM_THREADS = 16
"""Of the loop's own: more than look-ups that hang at once, for each is tried again after 2 s."""
_PR_SET_PDEATHSIG = 1
T = TypeVar("T")
log = logging.getLogger(__name__)


class Shutdown:
    """The wish to end. Made in the event loop; `ask` is for any thread. What is asked within
    `echo_s` of the first time is no second one."""

    def __init__(self, *, echo_s: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reason = ""
        self.exit_code = 0
        self._echo_s, self._asked_at = echo_s, 0.0

    def ask(self, reason: str, *, exit_code: int = 0) -> None:
        self._loop.call_soon_threadsafe(self._ask, reason, exit_code)

    def _ask(self, reason: str, exit_code: int) -> None:
        now = self._loop.time()
        if self.asked.is_set():
            if now - self._asked_at >= self._echo_s:
                self.hurry.set()
            return
        self._asked_at = now
        self.reason, self.exit_code = reason, exit_code
        log.info("stopping", extra={"reason": reason})
        self.asked.set()


def run(
    process: str,
    main: Callable[[Shutdown], Awaitable[int]],
    *,
    parent_pid: int = 0,
    prepare: Callable[[], None] = lambda: None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> int:
    """Prepares, then runs `main` to its exit code, which becomes the process's; `signals` ask it
    to stop."""
    try:
        prepare()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_run(main, parent_pid, signals))
    except SettingsError as error:
        return _one_line(process, error, EXIT_BAD_SETTINGS)
    except CheckpointError as error:
        return _one_line(process, error, EXIT_BAD_CHECKPOINT)
    except BatonError as error:
        return _one_line(process, error, EXIT_FAILED)
    except Exception:
        log.exception("crashed", extra={"remedy": "report it with this traceback"})
        return EXIT_FAILED


def leave(exit_code: int) -> NoReturn:
    """Ends the process now. All that is ours is closed by then, and taking the interpreter down
    with torch in it takes two seconds that a restart would wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class _NobodyWaits(ThreadPoolExecutor):
    """For what the loop's libraries do in threads, look-ups of names above all: one that no server
    answers takes ten seconds, which an end does not wait for."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


async def load(work: Callable[[], T], shutdown: Shutdown) -> T:
    """Does slow start-up work in a thread. If asked to stop meanwhile the process ends at once:
    it has accepted nothing, and a library in the middle of reading weights cannot be stopped."""
    loaded: Future[T] = Future()
    loaded.set_running_or_notify_cancel()  # it cannot be cancelled, whoever stops waiting

    def thread() -> None:
        try:
            loaded.set_result(work())
        except BaseException as error:
            loaded.set_exception(error)

    async def leave_if_asked() -> None:
        await shutdown.asked.wait()
        try:
            sys.stderr.flush()
        finally:  # whoever read it may be gone
            os._exit(shutdown.exit_code)

    threading.Thread(target=thread, name="load", daemon=True).start()
    async with beside(leave_if_asked(), name="leave-if-asked"):
        return await asyncio.wrap_future(loaded)


def ask_by_signals(shutdown: Shutdown, *numbers: signal.Signals) -> None:
    """From now on, until the running loop closes, each of these signals asks to end; any second
    one hurries."""
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, shutdown.ask, number.name)


@asynccontextmanager
async def beside(
    work: Coroutine[Any, Any, None], *, name: str
) -> AsyncIterator[asyncio.Task[None]]:
    """Its task, which may be cancelled before, and is when the block ends. An error of `work` ends
    the block; the first error of either is raised as it is, in no group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work, name=name)
            try:
                yield task
            finally:
                task.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _run(
    main: Callable[[Shutdown], Awaitable[int]], parent_pid: int, signals: Sequence[signal.Signals]
) -> int:
    shutdown = Shutdown(echo_s=ECHO_S if parent_pid else 0.0)
    threads = _NobodyWaits(NUM_THREADS, thread_name_prefix="loop")
    asyncio.get_running_loop().set_default_executor(threads)
    ask_by_signals(shutdown, *signals)
    try:
        return await _watched(main, parent_pid, shutdown)
    finally:
        _ignore(signals)


async def _watched(
    main: Callable[[Shutdown], Awaitable[int]], parent_pid: int, shutdown: Shutdown
) -> int:
    if not parent_pid:
        return await main(shutdown)
    _signal_at_death_of_parent()
    async with beside(_watch_parent(parent_pid, shutdown), name="watch-parent"):
        return await main(shutdown)


def _ignore(signals: Sequence[signal.Signals]) -> None:
    """The process ends with the code it has: one that came while the loop closes would be its death
    by a signal."""
    loop = asyncio.get_running_loop()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for number in signals:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _signal_at_death_of_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


async def _watch_parent(parent_pid: int, shutdown: Shutdown) -> None:
    """The signal is missed if the parent died before we asked for it. One that came, or is on its
    way, is enough: a second would hurry."""
    while os.getppid() == parent_pid:  # noqa: ASYNC110 - nobody can set an event for us
        await asyncio.sleep(PARENT_CHECK_S)
    await asyncio.sleep(PARENT_CHECK_S)
    if not shutdown.asked.is_set():
        shutdown.ask(f"supervisor {parent_pid} is gone")


def _one_line(process: str, error: BatonError, exit_code: int) -> int:
    sys.stderr.write(f"{process}: {' '.join(str(error).split())}\n")
    return exit_code
