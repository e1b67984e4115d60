"""Virtual time: calls in the order in which they are due."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Clock:
    """`now` is in seconds from the start. Calls due at one time run in the order they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def call_at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        assert when >= self.now, f"{when} is over, it is {self.now}"
        heapq.heappush(self._due, (when, next(self._numbers), call, args))

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.call_at(self.now + seconds, call, *args)

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            self.now, _, call, args = heapq.heappop(self._due)
            call(*args)
