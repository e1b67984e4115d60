"""Abstract unix sockets between processes of one user on one host.

Do not reach across hosts or network namespaces, and say so at once.
"""

import os
import secrets
import socket
import struct

from kvtransfer.transports.base import Unreachable
from kvtransfer.transports.dial import Port, connect
from protocol.ids import Epoch

_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class UnixPort(Port):
    """A source's abstract socket, for its listeners; `connect_to` takes its `address`."""

    def __init__(self, kind: str, *, epoch: Epoch) -> None:
        self.address = f"baton-{kind}-{epoch:x}-{secrets.token_hex(4)}"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.bind("\0" + self.address)
        self._sock.listen(_BACKLOG)

    def accept(self) -> socket.socket | None:
        """A new connection of our own user, non-blocking; None when there is none."""
        sock = super().accept()
        if sock is not None and not _same_user(sock):
            sock.close()
            return None
        return sock


def connect_to(address: str) -> socket.socket:
    """Begin to connect to a source of this host. Raises Unreachable."""
    sock = connect(socket.AF_UNIX, "\0" + address)
    if not _same_user(sock):
        sock.close()
        raise Unreachable("the socket belongs to another user")
    return sock


def _same_user(sock: socket.socket) -> bool:
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return bool(uid == os.geteuid())
