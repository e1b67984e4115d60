"""Signs that a client still reads what is written to it."""

import asyncio


class ReadingWatch:
    """Cuts off a client that takes nothing for `timeout_s` of what is left for it."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, timeout_s: float
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self.end()
        left = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._timeout_s, self._look, left)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, left: int) -> None:
        if self._transport.get_write_buffer_size() >= left:
            self._transport.abort()
        else:
            self.begin()


class HalfClosedWriter:
    """Writes to a client that sent its FIN. The first write to one that is gone succeeds, and ends
    the connection; the second is proof that it reads."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._num_writes = 0

    def write(self, data: bytes) -> None:
        self._num_writes += 1
        self._transport.write(data)

    def give_up(self) -> None:
        if self._num_writes < 2:
            self._transport.abort()
