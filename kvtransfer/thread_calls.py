"""Calls that other threads ask of one thread, which makes them in the order they came.

Bounded by who asks: each call is about one of the fetches or leases that its owner lets in, and
those have a bound. Whether a call still comes in time is for the owner to say.
"""

import threading
from collections import deque
from collections.abc import Callable

from kvtransfer.transports.control import Waker


class ThreadCalls:
    """`add` and `refuse_more` may be called from any thread, the others from the one thread, and
    `close` once it has ended."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._waker = Waker()
        self._closing = threading.Event()

    @property
    def is_closing(self) -> bool:
        """No call is added any more."""
        return self._closing.is_set()

    def fileno(self) -> int:
        """Readable when a call has come, or none will."""
        return self._waker.fileno()

    def add(self, call: Callable[[], None]) -> None:
        """Ask for this call; nothing comes of it once `refuse_more` was called."""
        if not self._closing.is_set():
            self._calls.append(call)
            self._waker.wake()

    def refuse_more(self) -> None:
        self._closing.set()
        self._waker.wake()

    def clear_wake(self, ready: set[int]) -> None:
        """Before `make_all`, of the descriptors that are ready."""
        if self._waker.fileno() in ready:
            self._waker.clear()

    def make_all(self) -> None:
        """Make every call that has come, those that come meanwhile included."""
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        self._waker.close()
