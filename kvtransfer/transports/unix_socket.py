"""Unix sockets between processes of one user on one host: abstract, or in a folder they share.

Abstract ones do not reach across network namespaces, such as those of two pods, and say so at once;
those in a folder reach as far as both see the folder under one path.
"""

import errno
import os
import secrets
import socket
import struct
from contextlib import suppress
from pathlib import Path

from kvtransfer.transports.base import Unreachable
from kvtransfer.transports.dial import Port, connect
from protocol.errors import TransferError
from protocol.ids import Epoch

_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class UnixPort(Port):
    """A source's socket, for its listeners; `connect_to` takes its `address`."""

    def __init__(self, kind: str, *, epoch: Epoch, folder: str = "") -> None:
        """In `folder`, or abstract without one. Raises TransferError where it cannot be."""
        self._path = ""
        name = f"baton-{kind}-{epoch:x}-{secrets.token_hex(4)}"
        self.address = f"{folder.rstrip('/')}/{name}" if folder else name
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            if folder:
                _remove_dead(folder)
                self._listen_in(Path(folder), name)
            else:
                self._sock.bind(_bound(name))
                self._sock.listen(_BACKLOG)
        except OSError as error:
            self.close()
            raise TransferError(f"no socket {self.address}: {error}") from error

    def _listen_in(self, folder: Path, name: str) -> None:
        """Nobody finds it by its name before it is listened on, or he would take it for dead."""
        draft = folder / f".{name}"
        self._path = str(draft)
        self._sock.bind(self._path)
        draft.chmod(0o600)
        self._sock.listen(_BACKLOG)
        draft.rename(self.address)
        self._path = self.address

    def close(self) -> None:
        super().close()
        if self._path:
            with suppress(OSError):
                os.unlink(self._path)

    def accept(self) -> socket.socket | None:
        """A new connection of our own user, non-blocking; None when there is none."""
        sock = super().accept()
        if sock is not None and not _same_user(sock):
            sock.close()
            return None
        return sock


def connect_to(address: str) -> socket.socket:
    """Begin to connect to a source of this host. Raises Unreachable."""
    sock = connect(socket.AF_UNIX, _bound(address))
    if not _same_user(sock):
        sock.close()
        raise Unreachable("the socket belongs to another user")
    return sock


def _bound(address: str) -> str:
    return address if address.startswith("/") else "\0" + address


def _remove_dead(folder: str) -> None:
    """Sockets of ours that nobody listens on any more: of processes that were killed."""
    for path in Path(folder).glob("baton-*"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                    path.unlink()
            except OSError:
                continue  # gone meanwhile, or another user's


def _same_user(sock: socket.socket) -> bool:
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return bool(uid == os.geteuid())
