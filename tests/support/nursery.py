"""A process that has imported everything and forks a child for each part asked of it.

A child costs milliseconds where an interpreter costs half a second, so hundreds can be killed.
The nursery has no threads and opens nothing before it forks. Everything ends with its parent.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.python_path import python_path

ROOT = Path(__file__).resolve().parents[2]
END_S = 60.0  # an interpreter that has imported everything, on a machine busy with other tests


class Words:
    """Lines of text to and from another process."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._from = line.makefile("r")

    def say(self, word: str) -> None:
        self._line.sendall(word.encode() + b"\n")

    def hear(self) -> str:
        """The next line; empty when nobody speaks any more."""
        return self._from.readline().rstrip("\n")

    def close(self) -> None:
        self._from.close()
        self._line.close()


Part = Callable[[Words, list[str]], None]


@dataclass
class Child:
    """A forked process; one that still lives at `close` ends when it hears nobody."""

    pid: int
    words: Words

    def say(self, word: str) -> None:
        self.words.say(word)

    def hear(self) -> str:
        return self.words.hear()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.words.close()


class Nursery:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], cwd=ROOT,
            env={
                "PYTHONPATH": python_path(ROOT, ROOT / "tests"), "PATH": "/usr/bin:/bin",
                **{name: value for name, value in os.environ.items() if name.startswith("UCX_")},
            },
        )  # fmt: skip
        theirs.close()

    def child(self, part: str, *arguments: str) -> Child:
        """Fork a child that plays `part` of `support.transfer_process`."""
        ours, theirs = socket.socketpair()
        order = json.dumps([part, *arguments]).encode()
        socket.send_fds(self._socket, [order], [theirs.fileno()])
        theirs.close()
        pid = int(self._socket.recv(64))
        return Child(pid, Words(ours))

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(timeout=END_S)
        finally:
            self._process.kill()
            self._process.wait()


def serve(orders: socket.socket, parts: dict[str, Part]) -> None:
    """Fork for every order until nobody gives any."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    while True:
        order, (*fds,), _, _ = socket.recv_fds(orders, 4_096, 1)
        if not order:
            return
        pid = os.fork()
        if pid == 0:
            orders.close()
            _play(parts, json.loads(order), fds[0])
        os.close(fds[0])
        orders.send(str(pid).encode())


def _play(parts: dict[str, Part], order: list[str], fd: int) -> None:
    with suppress(ConnectionError):
        parts[order[0]](Words(socket.socket(fileno=fd)), order[1:])
    os._exit(0)


if __name__ == "__main__":
    from support.transfer_process import PARTS

    with socket.socket(fileno=int(sys.argv[1])) as given:
        serve(given, PARTS)
