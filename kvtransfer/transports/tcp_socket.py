"""TCP sockets of data streams: where they listen, how they connect, how both ends are set.

For the planes whose streams begin with a TCP connection. On a real link the kernel's own tuning of
buffers finds the bandwidth-delay product; within one host there is no such thing, and no network
to be fair to (docs/lab.md has the figures).
"""

import ipaddress
import logging
import socket
from contextlib import suppress
from typing import Final

from kvtransfer.transports.base import Unreachable
from kvtransfer.transports.dial import Port, connect
from protocol.errors import SettingsError, TransferError
from protocol.process.listening import bound_socket

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_SILENCE_MS: Final = 6_000
"""A peer that acknowledges nothing for this long is gone; as long as a lease."""
_LOCAL_BUFFER_BYTES: Final = 2 << 20
"""Holds what the other end sends or takes while one is in Python between two chunks."""
_PROBE_S: Final = 2


class TcpPort(Port):
    """A TCP port of a source, from which its listeners inherit."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Listen on `port` of `host`, 0: a free one. Raises TransferError when it cannot."""
        try:
            self._sock = bound_socket(host, port, setting="kv_port")
        except SettingsError as error:
            raise TransferError(str(error)) from error
        try:
            _tune_listening(self._sock, host)
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            raise TransferError(f"cannot listen on {host}: {error}") from error
        self._sock.setblocking(False)
        self.address = f"*:{self._sock.getsockname()[1]}"


def connect_to(address: str) -> socket.socket:
    """A socket that has begun to connect to `host:port`. Raises Unreachable. The host is no name:
    looking one up can take many seconds, and this is the thread that renews the leases."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError) as error:
        why = f"{address!r} is no IP address and port: let the source advertise one"
        raise Unreachable(why) from error
    family, _, _, _, where = found[0]
    sock = connect(family, (str(where[0]), int(where[1])))
    _notice_silence(sock)
    return sock


def resolved(host: str) -> str:
    """The address of a host; of a name that nobody knows yet, the name, which sinks refuse. May
    take as long as the resolver does: for the start of a source."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.warning(
            "host name not known, sinks will refuse it: advertise an address",
            extra={"host": host, "why": str(error)},
        )
        return host
    addresses = sorted(found, key=lambda each: each[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def tune(sock: socket.socket) -> None:
    """Set a connected socket."""
    _notice_silence(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_local(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOCAL_BUFFER_BYTES)
        _do_not_pace(sock)


def is_local(sock: socket.socket) -> bool:
    """Both ends have one address: the bytes never leave this host."""
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:
        return False


def _tune_listening(sock: socket.socket, host: str) -> None:
    """Set a listening socket, whose connections begin as it is."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            _do_not_pace(sock)


def _notice_silence(sock: socket.socket) -> None:
    """Notice a peer that has gone without a word, also while connecting."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)


def _do_not_pace(sock: socket.socket) -> None:
    """BBR, a common default, sends by a timer, and a socket that began with it goes on to."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
