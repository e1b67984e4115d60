"""The HTTP server of a router: uvicorn's, over our connections, and its bound on descriptors."""

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
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


class HttpServer(uvicorn.Server):
    """Leaves signals to us: uvicorn would die of SIGTERM after a clean shutdown."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: RouterMetrics,
        limits: ConnectionLimits,
        max_connections: int,
        drain_s: float,
    ) -> None:
        others = OpenConnections(max_connections=max_connections)
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
            timeout_graceful_shutdown=max(1, round(drain_s)),
        )
        super().__init__(config)

    async def hurry_when_asked(self, stop: Shutdown) -> None:
        await stop.hurry.wait()
        self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_connections(max_connections: int, *, descriptors: int) -> int:
    """`max_connections`, or less where this process may have few descriptors: workers, Redis and
    files keep the other half."""
    endless = descriptors == resource.RLIM_INFINITY
    return max_connections if endless else min(max_connections, descriptors // 2)
