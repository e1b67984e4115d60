"""A free TCP port on which a source's streams arrive: the half that its listeners share.

For data planes whose streams begin with a TCP connection. A listener inherits from it and adds
its `transport` and its `welcome`. Called on the source's thread.
"""

import socket

from kvtransfer.transports.dial import accept_from
from protocol.errors import TransferError

_BACKLOG = 128


class Port:
    def __init__(self, host: str) -> None:
        """Listen on a free port of `host`. Raises TransferError when it cannot."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.prepare(self._sock, host)
            self._sock.bind((host, 0))
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            raise TransferError(f"cannot listen on {host}: {error}") from error
        self._sock.setblocking(False)
        self.address = f"*:{self._sock.getsockname()[1]}"

    def prepare(self, sock: socket.socket, host: str) -> None:
        """What must be set before it listens. Raises OSError."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        return accept_from(self._sock)

    def close(self) -> None:
        self._sock.close()
