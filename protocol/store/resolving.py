"""Connections to a Redis whose name is looked up in a thread of our own, one look-up at a time.

The loop's library, uvloop, would wait for look-ups that hang when the process ends, and begin
another at each try.
"""

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection

_running: dict[str, "asyncio.Future[tuple[str, ...]]"] = {}
"""By host; of the one loop of this process."""


def resolve_in_threads(pool: ConnectionPool) -> None:
    """What the pool opens from now on."""
    of_kind: dict[type, type] = {
        Connection: _NumberedConnection,
        SSLConnection: _NumberedSslConnection,
    }
    pool.connection_class = of_kind.get(pool.connection_class, pool.connection_class)


class _NumberedConnection(Connection):
    async def _connect(self) -> None:
        name, lost = self.host, OSError(f"no address of {self.host}")
        for number in await addresses_of(name):
            self.host = number
            try:
                return await super()._connect()  # type: ignore[no-any-return, no-untyped-call]
            except OSError as error:
                lost = error
            finally:
                self.host = name
        raise lost


class _NumberedSslConnection(_NumberedConnection, SSLConnection):
    async def _connect(self) -> None:
        self._name = self.host
        await super()._connect()

    def _connection_arguments(self) -> Any:
        """The certificate is of the name."""
        return {**super()._connection_arguments(), "server_hostname": self._name}


async def addresses_of(host: str) -> tuple[str, ...]:
    """IPv4 first. Raises OSError for a name that nobody knows."""
    with suppress(ValueError):
        return (str(ip_address(host)),)
    loop = asyncio.get_running_loop()
    found = _running.get(host)
    if found is None or found.get_loop() is not loop:
        found = _running[host] = loop.run_in_executor(None, _look_up, host)
        found.add_done_callback(lambda done: _forget(host, done))
    return await asyncio.shield(found)


def _forget(host: str, done: "asyncio.Future[tuple[str, ...]]") -> None:
    if _running.get(host) is done:
        del _running[host]
    if not done.cancelled():
        done.exception()  # it may be that nobody waits any more


def _look_up(host: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no name") from error
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))
