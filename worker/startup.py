"""What a worker needs of the outside before it loads anything: its port, and Redis."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from protocol.channel.port import RouterPort
from protocol.errors import StoreError
from protocol.process.machine import is_loopback
from protocol.process.metrics import WorkerMetrics
from protocol.process.run import beside
from protocol.process.settings import WorkerSettings
from protocol.store.workers import Store
from worker.reported.start_phases import StartPhases

MEET_S = 0.5
"""Between two tries to reach Redis at the start."""
OPEN = "links are neither authenticated nor encrypted: let nobody else reach this network"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    port: RouterPort
    store: Store
    metrics: WorkerMetrics
    phases: StartPhases


@asynccontextmanager
async def open_endpoints(settings: WorkerSettings) -> AsyncIterator[Endpoints]:
    """Open at once, and Redis is asked again and again until it answers. Raises SettingsError for a
    port that cannot be had."""
    if not is_loopback(settings.host):
        log.warning("open to the network", extra={"host": settings.host, "why": OPEN})
    metrics, store = WorkerMetrics(), Store(settings.redis_address)
    metrics.health.store_wait = store.contact.waiting
    metrics.serve_if_asked(host=settings.host, port=settings.metrics_port)
    port = RouterPort(host=settings.host, port=settings.port)
    phases = StartPhases(metrics)
    try:
        async with beside(_meet(store), name="meet redis"):
            yield Endpoints(port=port, store=store, metrics=metrics, phases=phases)
    finally:
        port.close()
        with suppress(StoreError):
            await store.close()


async def _meet(store: Store) -> None:
    """Until Redis has answered once."""
    while not store.contact.has_answered:
        try:
            await store.ping()
            store.contact.note()
        except StoreError as error:
            store.contact.note(error)
            await asyncio.sleep(MEET_S)
