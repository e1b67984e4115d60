"""One descriptor for a stream that waits for its socket and for a device.

A device tells no descriptor when its work is done, so while some is under way a timer makes the
stream look every 200 us; otherwise only the socket wakes it.
"""

import ctypes
import os
import select
import socket
from contextlib import suppress
from typing import Final

from kvtransfer.transports.ucx.thread import UcxWorker

LOOK_S: Final = 200e-6
_CLOCK_MONOTONIC: Final = 1
_TFD_FLAGS: Final = 0o2000000 | 0o4000
"""TFD_CLOEXEC | TFD_NONBLOCK."""


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long), ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long), ("value_ns", ctypes.c_long),
    )  # fmt: skip


class Ticker:
    """A descriptor that is readable every LOOK_S while it runs. `os.timerfd_create` is 3.13's."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._runs = False

    def fileno(self) -> int:
        return self._fd

    def run(self, on: bool) -> None:
        """Start or stop."""
        if on == self._runs or self._fd < 0:
            return
        nanoseconds = int(LOOK_S * 1e9) if on else 0
        spec = _Itimerspec(0, nanoseconds, 0, nanoseconds)
        self._libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None)
        self._runs = on

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Watch:
    """A socket and a ticker behind one pollable descriptor. Does not own the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._epoll = select.epoll(2)
        self._ticker = Ticker()
        self._wants_room = False
        self._epoll.register(sock, select.EPOLLIN)
        self._epoll.register(self._ticker, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def clear(self) -> None:
        self._ticker.clear()

    def expect(self, *, device: bool, room: bool = False) -> None:
        """What to wake for beside the socket's words: work under way, room in the socket."""
        self._ticker.run(device)
        if room != self._wants_room:
            self._wants_room = room
            events = select.EPOLLIN | (select.EPOLLOUT if room else 0)
            self._epoll.modify(self._sock, events)

    def close(self) -> None:
        self._ticker.close()
        self._epoll.close()


class Eyes:
    """One descriptor for a stream's socket and its worker."""

    def __init__(self, sock: socket.socket, worker: UcxWorker) -> None:
        self._sock = sock
        self._epoll = select.epoll()
        self._epoll.register(worker.fileno(), select.EPOLLIN)
        self._epoll.register(sock.fileno(), 0)
        self._mask = 0

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, *, writable: bool = False) -> None:
        """Look up for words, and for room in the socket if need be."""
        mask = select.EPOLLIN | (select.EPOLLOUT if writable else 0)
        if mask != self._mask:
            self._epoll.modify(self._sock.fileno(), mask)
            self._mask = mask

    def close(self) -> None:
        self._epoll.close()


def eyes_for(sock: socket.socket, worker: UcxWorker) -> Eyes:
    """Raises OSError when there is no descriptor left; the worker is stopped then."""
    try:
        return Eyes(sock, worker)
    except OSError:
        worker.stop()
        raise
