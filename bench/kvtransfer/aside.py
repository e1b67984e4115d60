"""A unix socket between the two ends of a pair, for all that is not measured.

Metadata, ids and barriers travel on it. Every wait on it has a deadline.
"""

import socket
from types import TracebackType
from typing import Final

GONE: Final = "the other end is gone"
"""What an end says that is not to blame."""
_MOST_BYTES: Final = 128 << 10


class Aside:
    """Messages of bytes, in order. Raises TimeoutError when the other end is silent, OSError or
    ConnectionError when it is gone."""

    def __init__(self, sock: socket.socket, *, within_s: float) -> None:
        self._sock = sock
        self._sock.settimeout(within_s)

    @classmethod
    def inherit(cls, fd: int, *, within_s: float) -> "Aside":
        return cls(socket.socket(fileno=fd), within_s=within_s)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Two sockets to be given to two processes."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def tell(self, message: bytes = b"") -> None:
        assert len(message) < _MOST_BYTES
        self._sock.send(b"\0" + message)  # an empty packet would read as the end

    def hear(self) -> bytes:
        message = self._sock.recv(_MOST_BYTES)
        if not message:
            raise ConnectionError(GONE)
        return message[1:]

    def swap(self, message: bytes = b"") -> bytes:
        """Tell and hear: a barrier."""
        self.tell(message)
        return self.hear()

    def tell_descriptor(self, fd: int) -> None:
        socket.send_fds(self._sock, [b"\0"], [fd])

    def hear_descriptor(self) -> int:
        _, (fd,), _, _ = socket.recv_fds(self._sock, 1, 1)
        return fd

    def __enter__(self) -> "Aside":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()
