"""How the sockets of TCP data streams are set, on both ends.

Called by the listener, the dialler and the streams. On a real link the kernel's own tuning of
buffers finds the bandwidth-delay product; within one host small buffers keep the bytes in cache
and there is no network to be fair to (docs/lab.md has the figures).
"""

import socket
from contextlib import suppress
from typing import Final

SILENCE_MS: Final = 6_000
"""A peer that acknowledges nothing for this long is gone; as long as a lease."""
LOCAL_BUFFER_BYTES: Final = 256 << 10
_PROBE_S: Final = 2


def tune(sock: socket.socket) -> None:
    """Set a connected socket."""
    watch_over(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_local(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER_BYTES)
        with suppress(OSError):  # BBR, a common default, paces: half as much CPU again
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def watch_over(sock: socket.socket) -> None:
    """Notice a peer that has gone without a word, also while connecting."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)


def is_local(sock: socket.socket) -> bool:
    """Both ends have one address: the bytes never leave this host."""
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:
        return False
