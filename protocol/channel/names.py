"""Names to numbers, so that ZeroMQ resolves none: it would on the one thread of all links.

Nothing is kept: a name is looked up anew for every link, since what it names may move.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address

from protocol.errors import PeerLost

RESOLVE_S = 2.0
"""As long as a worker has to answer `Hello`."""
Lookup = Callable[[str], str]


class Names:
    """One look-up of a name at a time, each on a thread of its own: the resolver's timeouts are
    longer than ours, and nobody else's look-up waits behind them. Owned by one event loop."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        """`lookup` blocks, and raises OSError for a name that nobody knows."""
        self._lookup = lookup or _look_up
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
        try:
            return str(ip_address(host))
        except ValueError:
            pass
        if host not in self._running:
            self._running[host] = self._begin(host, asyncio.get_running_loop())
        return await asyncio.shield(self._running[host])

    def _begin(self, host: str, loop: asyncio.AbstractEventLoop) -> asyncio.Future[str]:
        found: asyncio.Future[str] = loop.create_future()

        def end(number: str, error: Exception | None) -> None:
            self._running.pop(host, None)
            if error is None:
                found.set_result(number)
            else:
                found.set_exception(error)
                found.exception()  # it may be that nobody waits any more

        def work() -> None:
            number, failed = "", None
            try:
                number = self._lookup(host)
            except Exception as error:
                failed = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(end, number, failed)

        threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
        return found


def _look_up(host: str) -> str:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])
