"""One descriptor for a UCX stream's socket and its worker. Called by the stream's two ends."""

import select
import socket

from kvtransfer.transports.ucx_worker import UcxWorker


class Eyes:
    """One descriptor for a stream's socket and its worker."""

    def __init__(self, sock: socket.socket, worker: UcxWorker) -> None:
        self._sock = sock
        self._epoll = select.epoll()
        self._epoll.register(worker.fileno(), select.EPOLLIN)
        self._epoll.register(sock.fileno(), 0)
        self._mask = 0

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, *, writable: bool = False) -> None:
        """Look up for words, and for room in the socket if need be."""
        mask = select.EPOLLIN | (select.EPOLLOUT if writable else 0)
        if mask != self._mask:
            self._epoll.modify(self._sock.fileno(), mask)
            self._mask = mask

    def close(self) -> None:
        self._epoll.close()


def eyes_for(sock: socket.socket, worker: UcxWorker) -> Eyes:
    """Raises OSError when there is no descriptor left; the worker is stopped then."""
    try:
        return Eyes(sock, worker)
    except OSError:
        worker.stop()
        raise
