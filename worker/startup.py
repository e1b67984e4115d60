"""What a worker needs of the outside before it loads anything: its port, and Redis."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from protocol.channel.port import RouterPort
from protocol.process.machine import is_loopback
from protocol.process.metrics import WorkerMetrics
from protocol.process.settings import WorkerSettings
from protocol.store.workers import Store
from worker.start_phases import StartPhases

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
    """Raises SettingsError for a port that cannot be had, StoreError when Redis is silent."""
    if not is_loopback(settings.host):
        log.warning("open to the network", extra={"host": settings.host, "why": OPEN})
    metrics = WorkerMetrics()
    metrics.serve_if_asked(host=settings.host, port=settings.metrics_port)
    port = RouterPort(host=settings.host, port=settings.port)
    store = Store(settings.redis_address)
    try:
        await store.ping()
        yield Endpoints(port=port, store=store, metrics=metrics, phases=StartPhases(metrics))
    finally:
        port.close()
        await store.close()
