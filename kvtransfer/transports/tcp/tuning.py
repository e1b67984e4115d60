"""How the sockets of TCP data streams are set, on both ends.

On a real link the kernel's own tuning of buffers finds the bandwidth-delay product; within one
host there is no such thing, and no network to be fair to (docs/lab.md has the figures).
"""

import ipaddress
import socket
from contextlib import suppress
from typing import Final

SILENCE_MS: Final = 6_000
"""A peer that acknowledges nothing for this long is gone; as long as a lease."""
LOCAL_BUFFER_BYTES: Final = 2 << 20
"""Holds what the other end sends or takes while one is in Python between two chunks."""
_PROBE_S: Final = 2


def tune_listening(sock: socket.socket, host: str) -> None:
    """Set a listening socket, whose connections begin as it is."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            _do_not_pace(sock)


def tune(sock: socket.socket) -> None:
    """Set a connected socket."""
    watch_over(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_local(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER_BYTES)
        _do_not_pace(sock)


def watch_over(sock: socket.socket) -> None:
    """Notice a peer that has gone without a word, also while connecting."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)


def _do_not_pace(sock: socket.socket) -> None:
    """BBR, a common default, sends by a timer, and a socket that began with it goes on to."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def is_local(sock: socket.socket) -> bool:
    """Both ends have one address: the bytes never leave this host."""
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:
        return False
