"""Turns that processes of one machine take at something of which there is one, such as a GPU while
its free memory is measured.

By a name of the abstract namespace of Unix sockets: it needs no file, and is given up when its
process dies, however it does. Of processes in other network namespaces (as containers mostly are)
nothing is known.
"""

import errno
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""Who measures a GPU is done in some seconds, or in a minute where kernels are compiled first."""
PAUSE_S = 0.05


@contextmanager
def take_turn(
    name: str,
    *,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bool]:
    """Alone among those that take turns at `name`; False where somebody else kept it for longer
    than `patience_s`, which is logged: nobody waits for a process that hangs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as taken:
        deadline = clock() + patience_s
        while not (is_ours := _bind(taken, f"\0baton-turn-{name}")) and clock() < deadline:
            sleep(PAUSE_S)
        if not is_ours:
            log.warning("went on without its turn", extra={"at": name, "waited_s": patience_s})
        yield is_ours


def _bind(taken: socket.socket, address: str) -> bool:
    try:
        taken.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
