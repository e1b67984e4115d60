"""A data plane within one process, for tests: the sink copies straight from the source's pool.

The stream is a pair of connected sockets, so an end looks exactly as it does between processes.
Importing this adds the plane to the process's table.
"""

import socket
from collections import deque

from support.pool_views import view_of

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports.base import (
    DialOptions,
    ListenOptions,
    SinkStream,
    SourceStream,
    Unreachable,
)
from kvtransfer.transports.control import Waker
from kvtransfer.transports.dial import Dial, send_welcome
from kvtransfer.transports.planes import PLANES, DataPlane
from kvtransfer.transports.shm.sink import ShmSinkSetup, ShmSinkStream
from kvtransfer.transports.shm.source import ShmSourceStream
from protocol.errors import LayoutMismatch
from protocol.ids import Epoch

NAME = "memory"
_BACKLOG = 128
_listeners: dict[Epoch, "MemoryListener"] = {}


class MemorySinkStream(ShmSinkStream):
    transport = NAME


class MemorySourceStream(ShmSourceStream):
    transport = NAME


class MemoryListener:
    """A source that sinks of the same process find by its epoch."""

    transport = NAME

    def __init__(self, memory: BlockMemory, options: ListenOptions) -> None:
        self.memory = memory
        self.address = f"{options.epoch:x}"
        self._epoch = options.epoch
        self._waiting: deque[socket.socket] = deque()
        self._waker = Waker()
        _listeners[options.epoch] = self

    def fileno(self) -> int:
        return self._waker.fileno()

    def connect(self) -> socket.socket:
        """The sink's end of a new connection. Raises Unreachable."""
        if len(self._waiting) >= _BACKLOG:
            raise Unreachable("too many connections wait")
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise Unreachable(str(error)) from error
        for sock in (ours, theirs):
            sock.setblocking(False)
        self._waiting.append(ours)
        self._waker.wake()
        return theirs

    def accept(self) -> socket.socket | None:
        self._waker.clear()
        return self._waiting.popleft() if self._waiting else None

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        send_welcome(sock, welcome)
        return MemorySourceStream(sock, self.memory, None)

    def close(self) -> None:
        _listeners.pop(self._epoch, None)
        while self._waiting:
            self._waiting.popleft().close()
        self._waker.close()


def dial(memory: BlockMemory, options: DialOptions) -> Dial:
    """Connect to a source of this process, to fetch into `memory`. Raises Unreachable."""
    listener = _listeners.get(options.hello.epoch)
    if listener is None:
        raise Unreachable("the source is not in this process")
    pool = listener.memory

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> SinkStream:
        try:
            return MemorySinkStream(sock, memory, ShmSinkSetup(source=view_of(pool)))
        except LayoutMismatch as error:
            raise Unreachable(str(error)) from error

    return Dial(listener.connect(), options, transport=NAME, finish=finish)


PLANES[NAME] = DataPlane((BlockMemory,), MemoryListener, dial)
