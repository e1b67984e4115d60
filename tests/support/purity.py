"""A guard that refuses what a pure test may not do: sockets and processes, and with them Redis.

Python's audit events tell of sockets and processes, whoever makes them; ZeroMQ, uvloop and
multiprocessing make theirs in C and are stopped at their own door. Pairs of Unix sockets are
allowed, because an event loop wakes itself through one. What an act raises may be caught by the
code under test, so the guard also remembers it. An audit hook cannot be removed again: the first
guard installs it, and it costs a look at a global for each event from then on.
"""

import multiprocessing.process
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvloop
import zmq

PROCESS_EVENTS = frozenset(
    {
        *("subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.spawn"),
        *("os.posix_spawn", "os.system"),
    }
)
SOCKET_EVENTS = frozenset({"socket.bind", "socket.connect"})


class NotPure(AssertionError):
    """A pure test did what only another tier may do; says what, and where the test belongs."""

    def __init__(self, act: str) -> None:
        super().__init__(
            f"this test is not pure: {act}. List its file in NOT_PURE of tests/support/tiers.py, "
            "or give it a fake"
        )


class Guard:
    """Refuses the acts of one test and of the threads that it starts."""

    def __init__(self) -> None:
        self.acts: list[str] = []
        self._others = {thread.ident for thread in threading.enumerate()}
        self._others.discard(threading.get_ident())

    def refuse(self, act: str) -> None:
        """Raises NotPure, unless a thread acts that was there before the test."""
        if threading.get_ident() not in self._others:
            self.acts.append(act)
            raise NotPure(act)


@contextmanager
def pure() -> Iterator[None]:
    """Raises NotPure for an act within the context, also when its own NotPure was caught."""
    global _guard
    _install()
    before, guard = _guard, Guard()
    _guard = guard
    try:
        yield
    finally:
        _guard = before
    if guard.acts:
        raise NotPure(guard.acts[0])


def is_guarded() -> bool:
    """Whether the caller runs within `pure`."""
    return _guard is not None


_guard: Guard | None = None
_is_installed = False


def _install() -> None:
    global _is_installed
    if not _is_installed:
        _is_installed = True
        sys.addaudithook(_audit)
        _refuse_in(zmq.Socket, "__init__", "it makes a ZeroMQ socket")
        _refuse_in(uvloop, "new_event_loop", "it makes a uvloop loop, whose sockets nobody sees")
        _refuse_in(multiprocessing.process.BaseProcess, "start", "it starts a process")


def _audit(event: str, args: tuple[object, ...]) -> None:
    if _guard is None:
        return
    if event == "socket.__new__" and args[1] != socket.AF_UNIX:
        _guard.refuse("it makes a socket")
    elif event in SOCKET_EVENTS:
        _guard.refuse(f"it makes a connection ({event})")
    elif event in PROCESS_EVENTS:
        _guard.refuse(f"it starts a process ({event})")


def _refuse_in(owner: object, name: str, act: str) -> None:
    """From now on this callable of `owner` asks the guard first."""
    original: Callable[..., object] = getattr(owner, name)

    def guarded(*args: object, **kwargs: object) -> object:
        if _guard is not None:
            _guard.refuse(act)
        return original(*args, **kwargs)

    setattr(owner, name, guarded)
