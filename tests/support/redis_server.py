"""A real redis-server on a free loopback port, that tests can kill and restart empty."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from redis import Redis
from support.eventually import eventually

from controlplane.local.embedded_redis import find_server
from protocol.store.address import RedisAddress


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports(num: int) -> int:
    """The first of so many that follow each other and were free a moment ago, outside the range
    that the kernel gives away by itself."""
    for first in range(20_000 + os.getpid() % 5_000, 32_000, num):
        with ExitStack() as probes:
            try:
                for port in range(first, first + num):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {num} ports are free")


class RedisServer:
    """Nothing is written to disk, so that a restart comes back empty."""

    def __init__(self, *, password: str = "") -> None:
        self.port = free_port()
        self._password = password
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.address = RedisAddress(url=self.url, password=password)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            [
                str(find_server()),
                *("--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
                *(("--requirepass", self._password) if self._password else ()),
            ],
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        eventually(self._answers, 10, "redis-server answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """On the same port, empty."""
        self.kill()
        self.start()

    @contextmanager
    def client(self) -> Iterator[Redis]:
        """What lies in it, past any store of ours."""
        who = self.address
        client = Redis.from_url(who.url, username=who.username or None, password=who.password)
        try:
            yield client
        finally:
            client.close()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server ended at once"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.kill()
