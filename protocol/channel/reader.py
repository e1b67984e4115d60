"""Reads a ZeroMQ socket in the event loop: all that has come, in the turn in which it is seen.

`zmq.asyncio` makes a future and two turns of each message (docs/lab.md, what a token costs).
"""

import asyncio
from collections.abc import Callable

import zmq

_MESSAGES_A_TURN = 64
"""Then others of the loop have theirs."""
_EVENTS, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)
"""As numbers: an enumeration's members cost a microsecond each."""


class SocketReader:
    """`accept` is called with each frame from `start` to `close`, which it may call itself."""

    def __init__(self, socket: "zmq.Socket[bytes]", accept: Callable[[bytes], None]) -> None:
        self._socket = socket
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._is_open = False

    def start(self) -> None:
        self._is_open = True
        self._loop.add_reader(self._descriptor, self.read)
        self._loop.call_soon(self.read)

    def close(self) -> None:
        """Before the socket is closed. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._descriptor)

    def look_again(self) -> None:
        """To be called after each use of the socket: the use may have taken the descriptor's sign
        that something has come."""
        if self._is_open and self._has_message():
            self._loop.call_soon(self.read)

    def read(self) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if not self._is_open or not self._has_message():
                return
            self._accept(self._socket.recv(_NOBLOCK))
        self._loop.call_soon(self.read)

    def _has_message(self) -> bool:
        """Cheaper than to be told by an exception."""
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)
