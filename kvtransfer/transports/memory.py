"""Source and sink in one process: the sink copies straight from the source's pool.

For tests, and for pools that live beside the engine's own. The stream is a pair of connected
sockets, so an end looks exactly as it does between processes.
"""

import socket
from collections import deque

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.transports import base, framing
from kvtransfer.transports.control import Waker
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.shm.streams import AnnouncingStream, ReadingStream
from protocol.errors import LayoutMismatch
from protocol.ids import Epoch

NAME = "memory"
_BACKLOG = 128
_listeners: dict[Epoch, "MemoryListener"] = {}


class MemoryListener:
    """A source that sinks of the same process find by its epoch."""

    transport = NAME

    def __init__(self, memory: BlockMemory, *, epoch: Epoch) -> None:
        self.memory = memory
        self.address = f"{epoch:x}"
        self._epoch = epoch
        self._waiting: deque[socket.socket] = deque()
        self._waker = Waker()
        _listeners[epoch] = self

    def fileno(self) -> int:
        return self._waker.fileno()

    def connect(self) -> socket.socket:
        """The sink's end of a new connection. Raises base.Unreachable."""
        if len(self._waiting) >= _BACKLOG:
            raise base.Unreachable("too many connections wait")
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise base.Unreachable(str(error)) from error
        for sock in (ours, theirs):
            sock.setblocking(False)
        self._waiting.append(ours)
        self._waker.wake()
        return theirs

    def accept(self) -> socket.socket | None:
        self._waker.clear()
        return self._waiting.popleft() if self._waiting else None

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        framing.send_word(sock, stream_welcome.encode(word))
        return AnnouncingStream(sock, NAME, helper=None)

    def close(self) -> None:
        _listeners.pop(self._epoch, None)
        while self._waiting:
            self._waiting.popleft().close()
        self._waker.close()


def dial(hello: StreamHello, memory: BlockMemory) -> Dial:
    """Connect to a source of this process, to fetch into `memory`. Raises base.Unreachable."""
    listener = _listeners.get(hello.epoch)
    if listener is None:
        raise base.Unreachable("the source is not in this process")
    pool = listener.memory

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        try:
            return ReadingStream(sock, NAME, source=pool.view(), memory=memory, board=None)
        except (LayoutMismatch, OSError) as error:
            raise base.Unreachable(str(error)) from error

    return Dial(listener.connect(), transport=NAME, hello=hello, finish=finish)
