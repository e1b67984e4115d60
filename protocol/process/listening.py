"""Where a process listens: one address, or all, of either family.

`::` is every address of this host, IPv6 and IPv4; where the kernel has no IPv6, every IPv4 one.
"""

import errno
import socket

from protocol.errors import SettingsError

ANY_ADDRESS = "::"


def bracketed(host: str) -> str:
    """As it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def bound_socket(host: str, port: int, *, setting: str, shared: bool = False) -> socket.socket:
    """A TCP socket that does not listen yet; one that is `shared` takes turns with others on its
    port. Raises SettingsError, which names `setting`, the port's, or the host."""
    try:
        return _bound(host, port, shared=shared)
    except (OSError, ValueError, OverflowError) as error:
        raise unlistenable(setting, host, port, error) from error


def unlistenable(setting: str, host: str, port: int, error: Exception) -> SettingsError:
    """Why nothing can listen there: the host's fault, or that of `setting`, a port's."""
    of_host = isinstance(error, socket.gaierror | ValueError)
    of_host |= getattr(error, "errno", None) in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL)
    why = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
    where = f"{bracketed(host)}:{port}"
    return SettingsError(f"{'host' if of_host else setting}: cannot listen on {where}: {why}")


def open_socket(host: str) -> tuple[socket.socket, str]:
    """A TCP socket of the family of `host`, and the address to bind it to. Raises OSError."""
    if ":" not in host:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM), host
    try:
        made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError as error:
        if host != ANY_ADDRESS or error.errno != errno.EAFNOSUPPORT:
            raise
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM), "0.0.0.0"
    if host == ANY_ADDRESS:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made, host


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    made, address = open_socket(host)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address, port))
    except BaseException:
        made.close()
        raise
    return made
