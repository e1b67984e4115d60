"""The API keys of a router and their limits, kept up to date beside whoever asks for them."""

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

from protocol.errors import StoreError
from protocol.process.metrics import RouterMetrics
from protocol.store.address import RedisAddress
from protocol.store.limits import LimitStore
from router.tenants.key_ring import KeyRing
from router.tenants.key_watch import watch_keys
from router.tenants.rate_limits import RateLimits

REDIS_DEADLINE_S = 0.5
"""A request may wait so long for a share of its limit; then this router enforces its part."""


class Tenancy:
    """`run` it, and `close` it in the same event loop. SettingsError for a file that is wrong."""

    def __init__(self, keys_file: Path, *, redis: RedisAddress, metrics: RouterMetrics) -> None:
        self.keys = KeyRing()
        self._watch = watch_keys(keys_file, self.keys, metrics)
        self._store = LimitStore(redis, deadline_s=REDIS_DEADLINE_S)
        name = secrets.token_hex(8)
        self.limits = RateLimits(router=name, store=self._store, metrics=metrics)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run(), name="keys file")
            tasks.create_task(self.limits.run(), name="limits")

    async def close(self) -> None:
        with suppress(StoreError):
            await self._store.close()
