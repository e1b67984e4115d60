"""Descriptors polled: several behind one, a socket's end, and a look at a device's work.

A device tells no descriptor when its work is done, so while some is under way a timer makes the
stream look every 200 us; otherwise only its sockets wake it.
"""

import ctypes
import os
import select
import socket
from contextlib import suppress
from typing import Final, Protocol

from kvtransfer.device.driver import Sums
from protocol.errors import TransferError

LOOK_S: Final = 200e-6
SOON_S: Final = 50e-6
"""For what takes a library tens of microseconds, and holds up what follows."""
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
        self._look_s = 0.0

    def fileno(self) -> int:
        return self._fd

    def run(self, on: bool, *, soon: bool = False) -> None:
        """Start or stop; `soon`: every SOON_S."""
        look_s = (SOON_S if soon else LOOK_S) if on else 0.0
        if look_s == self._look_s or self._fd < 0:
            return
        nanoseconds = int(look_s * 1e9)
        spec = _Itimerspec(0, nanoseconds, 0, nanoseconds)
        self._libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None)
        self._look_s = look_s

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FdPoller:
    """Descriptors behind one that is readable when one of them is ready. Owns none of them."""

    def __init__(self) -> None:
        """Raises OSError without a descriptor."""
        self._epoll = select.epoll()
        self._masks: dict[int, int] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, fd: int, *, writable: bool = False) -> None:
        """Wake for what comes on `fd`, and for room in it if need be."""
        mask = select.EPOLLIN | (select.EPOLLOUT if writable else 0)
        watched = self._masks.get(fd)
        if watched == mask:
            return
        if watched is None:
            self._epoll.register(fd, mask)
        else:
            self._epoll.modify(fd, mask)
        self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        """Before `fd` is closed, unless the poller is closed too."""
        del self._masks[fd]
        self._epoll.unregister(fd)

    def ready(self, wait_s: float = 0.0) -> list[int]:
        """Those of the descriptors that have something, now or within `wait_s`."""
        return [fd for fd, _ in self._epoll.poll(wait_s)]

    def close(self) -> None:
        self._epoll.close()


class HasFileno(Protocol):
    """What can be waited for."""

    def fileno(self) -> int: ...


class Polled:
    """A stream that waits for whatever its poller watches."""

    _poller: FdPoller

    def fileno(self) -> int:
        return self._poller.fileno()


class DevicePoller(FdPoller):
    """Wakes for a device's work too, every LOOK_S while its ticker runs."""

    def __init__(self, sock: HasFileno) -> None:
        super().__init__()
        self.ticker = Ticker()
        self.watch(sock.fileno())
        self.watch(self.ticker.fileno())

    def close(self) -> None:
        super().close()
        self.ticker.close()


def has_hung_up(sock: socket.socket) -> bool:
    """The other end is closed, whatever of it is still to be read; or ours is."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def is_over(launched: Sums) -> bool:
    """The device writes for it no more; a device that is lost writes nothing."""
    try:
        return launched.happened()
    except TransferError:
        return True
