"""What the workers have said about one request and its client has not yet been given.

One reader, one event loop. Bounded: a client that reads more slowly than the model writes is cut
off instead of filling memory.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from router.workers.worker_messages import WorkerMessage


class Overflowed(Exception):
    """More messages than the bound were waiting; those after it are lost."""


class Mailbox:
    """Messages until `deadline_s` from now: one timer a request, not one a token. `on_overflow`
    is called once, at once, whether or not anyone is reading. `close` it."""

    def __init__(self, *, bound: int, deadline_s: float, on_overflow: Callable[[], None]) -> None:
        self._messages: deque[WorkerMessage] = deque()
        self._bound = bound
        self._on_overflow = on_overflow
        self._end: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(max(0.0, deadline_s), self._expire)

    def put(self, message: WorkerMessage) -> None:
        if self._end is not None:
            return
        if len(self._messages) >= self._bound:
            self._end = Overflowed()
            self._messages.clear()
            self._on_overflow()
        else:
            self._messages.append(message)
        self._wake()

    async def get(self) -> WorkerMessage:
        """The next message. TimeoutError after the deadline; Overflowed when cut off."""
        while not self._messages:
            if self._end is not None:
                raise self._end
            self._arrival = self._loop.create_future()
            await self._arrival
        return self._messages.popleft()

    def close(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        if self._end is None:
            self._end = TimeoutError()
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
