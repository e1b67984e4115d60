"""The HTTP server of a router: uvicorn's, over our connections, and its bound on descriptors."""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from protocol.process.metrics import RouterMetrics
from protocol.process.run import Shutdown
from router.wire.connection import Connection
from router.wire.limits import ConnectionLimits
from router.wire.open_connections import OpenConnections

log = logging.getLogger("baton.http")
LOOK_S = 0.05
"""Between two looks at what is still connected."""
TELL_S = 2.0
"""What clients have to take the error that ends their request."""
CLOSE_S = 1.0
"""What requests of closed connections have to end."""


class HttpServer(uvicorn.Server):
    """Leaves signals to us: uvicorn would die of SIGTERM after a clean shutdown. Its way to end
    cuts what is left, this one says so first: `end_requests` has each fail, told to its client."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: RouterMetrics,
        limits: ConnectionLimits,
        max_connections: int,
        drain_s: float,
        end_requests: Callable[[], None],
    ) -> None:
        self._others = others = OpenConnections(max_connections=max_connections)
        self._drain_s, self._end_requests = drain_s, end_requests
        self._hurry = asyncio.Event()
        protocol = partial(Connection, others=others, limits=limits, metrics=metrics)
        config = uvicorn.Config(
            app,
            http=cast(Any, protocol),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
        super().__init__(config)

    async def hurry_when_asked(self, stop: Shutdown) -> None:
        await stop.hurry.wait()
        self.hurry()

    def hurry(self) -> None:
        """Ends as if all its time were over."""
        self._hurry.set()

    @property
    def is_draining(self) -> bool:
        return self._others.is_draining

    async def linger(self, linger_s: float) -> None:
        """Serves so long for those who have not heard that it ends, then begins to."""
        self._others.begin_drain()
        await self._hurry_or(linger_s)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Returns when no client is connected: within `drain_s`, or soon after."""
        self._others.begin_drain()
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        async with asyncio.TaskGroup() as tasks:
            closed = tasks.create_task(self._all_closed(), name="all closed")
            hurry = tasks.create_task(self._hurry_or(self._drain_s), name="drain")
            await asyncio.wait((closed, hurry), return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not closed.done():
                log.warning("requests cut", extra={"remedy": "a longer drain_s"})
                self._end_requests()
                await asyncio.wait((closed,), timeout=TELL_S)
            for connection in list(self.server_state.connections):
                cast(Connection, connection).transport.abort()
            await asyncio.wait((closed,), timeout=CLOSE_S)
            closed.cancel()
        await self.lifespan.shutdown()

    async def _all_closed(self) -> None:
        state = self.server_state
        while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn's, which tell nobody
            await asyncio.sleep(LOOK_S)

    async def _hurry_or(self, after_s: float) -> None:
        """Until asked to hurry, so long at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), after_s)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_connections(max_connections: int, *, descriptors: int) -> int:
    """`max_connections`, or less where this process may have few descriptors: workers, Redis and
    files keep the other half."""
    endless = descriptors == resource.RLIM_INFINITY
    return max_connections if endless else min(max_connections, descriptors // 2)
