"""Calls that other threads ask of one thread, which makes them in the order they came.

Bounded by who asks: each call is about one of the fetches or leases that its owner lets in, and
those have a bound. Whether a call still comes in time is for the owner to say.
"""

from collections import deque
from collections.abc import Callable


class ThreadCalls:
    """`add` may be called from any thread, `make_all` from the one thread alone."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` makes that thread look up from its poller."""
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = wake

    def add(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._wake()

    def make_all(self) -> None:
        """Make every call that has come, those that come meanwhile included."""
        while self._calls:
            self._calls.popleft()()
