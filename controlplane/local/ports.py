"""Ports of this machine that our processes are going to listen on, kept for them.

On Linux a port stays kept while the process that listens on it dies and is started again: a socket
that is bound and does not listen keeps everybody out but those who, like it, set SO_REUSEADDR.
Elsewhere the port is only looked at, and may be taken before its process is there.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from protocol.process.listening import bound_socket


@contextmanager
def kept_ports(host: str, first: int, *, num: int, setting: str) -> Iterator[Sequence[int]]:
    """`num` ports from `first` on, or any different ones if 0. Raises SettingsError, which names
    `setting`, when nothing can listen on one."""
    wanted = [first + index if first else 0 for index in range(num)]
    with ExitStack() as kept:
        bound = [kept.enter_context(bound_socket(host, port, setting=setting)) for port in wanted]
        ports = [probe.getsockname()[1] for probe in bound]
        if sys.platform != "linux":
            kept.close()
        yield ports
