"""Names to numbers, so that ZeroMQ resolves none: it would on the one thread of all links.

Nothing is kept: a name is looked up anew for every link, since what it names may move.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from protocol.errors import PeerLost

RESOLVE_S = 2.0
"""As long as a worker has to answer `Hello`."""
MAX_LOOKUPS = 1_024
"""At a time: beyond as many slow names a quick one waits too."""
Lookup = Callable[[str], str]


class Names:
    """One look-up of a name at a time, each on a thread of its own: the resolver's timeouts are
    longer than ours, and nobody else's look-up waits behind them. Owned by one event loop."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        """`lookup` blocks, and raises OSError for a name that nobody knows."""
        self._lookup = lookup or _look_up
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="resolve")
        self._running: dict[str, asyncio.Future[str]] = {}

    async def resolve(self, address: str) -> str:
        """`tcp://host:port` with a number for its host. PeerLost when there is none in time."""
        scheme, _, rest = address.partition("://")
        host, _, port = rest.rpartition(":")
        try:
            async with asyncio.timeout(RESOLVE_S):
                number = await self._number_of(host.strip("[]"))
        except TimeoutError as error:
            raise PeerLost(f"worker at {address}: no address within {RESOLVE_S:g} s") from error
        except (OSError, UnicodeError) as error:
            raise PeerLost(f"worker at {address}: no address: {error}") from error
        return f"{scheme}://{f'[{number}]' if ':' in number else number}:{port}"

    async def _number_of(self, host: str) -> str:
        with suppress(ValueError):
            return str(ip_address(host))
        found = self._running.get(host)
        if found is None:
            loop = asyncio.get_running_loop()
            found = self._running[host] = loop.run_in_executor(self._threads, self._lookup, host)
            found.add_done_callback(partial(self._ended, host))
        return await asyncio.shield(found)

    def _ended(self, host: str, found: asyncio.Future[str]) -> None:
        del self._running[host]
        if not found.cancelled():
            found.exception()  # it may be that nobody waits any more


def _look_up(host: str) -> str:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])
