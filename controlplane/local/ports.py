"""Ports of this machine that our processes are going to listen on, kept for them.

On Linux a port stays kept while the process that listens on it dies and is started again: a socket
that is bound and does not listen keeps everybody out but those who, like it, set SO_REUSEADDR.
Elsewhere the port is only looked at, and may be taken before its process is there.
"""

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from protocol.process.machine import unlistenable


@contextmanager
def kept_ports(host: str, first: int, *, num: int, setting: str) -> Iterator[Sequence[int]]:
    """`num` ports from `first` on, or any different ones if 0. Raises SettingsError, which names
    `setting`, when nothing can listen on one."""
    wanted = [first + index if first else 0 for index in range(num)]
    with ExitStack() as kept:
        bound = [kept.enter_context(_bound(host, port, setting=setting)) for port in wanted]
        ports = [probe.getsockname()[1] for probe in bound]
        if sys.platform != "linux":
            kept.close()
        yield ports


def _bound(host: str, port: int, *, setting: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except (OSError, OverflowError, ValueError) as error:
        probe.close()
        raise unlistenable(setting, host, port, error) from error
    return probe
