"""Ports of this machine that can be listened on, looked at before any process is started.

Nothing is reserved: whoever is given a port must still be ready to find it taken.
"""

import socket
from collections.abc import Sequence
from contextlib import ExitStack

from protocol.process.machine import unlistenable


def free_port(host: str, port: int) -> int:
    """`port`, or a free one if 0. Raises SettingsError when nothing can listen there."""
    with _bound(host, port, setting="port") as probe:
        return int(probe.getsockname()[1])


def free_ports(first: int, *, num: int) -> Sequence[int]:
    """On loopback, from `first` on, or any `num` different ones if 0. Raises SettingsError."""
    wanted = [first + index if first else 0 for index in range(num)]
    with ExitStack() as probes:
        bound = [
            probes.enter_context(_bound("127.0.0.1", port, setting="metrics_port"))
            for port in wanted
        ]
        return [probe.getsockname()[1] for probe in bound]


def _bound(host: str, port: int, *, setting: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except (OSError, OverflowError, ValueError) as error:
        probe.close()
        raise unlistenable(setting, host, port, error) from error
    return probe
