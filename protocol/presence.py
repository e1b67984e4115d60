"""An entry in Redis that says that a process is here: of a router, and of a worker that loads.

Written again and again until cancelled, so that it dies soon after its process. Redis away is a
log line, never an error.
"""

import asyncio
import logging

from protocol.errors import StoreError
from protocol.membership import INTERVAL_S, TTL_S
from protocol.store.workers import ComingWorker, RouterRecord, Store

log = logging.getLogger(__name__)


class RouterPresence:
    """A router that serves. Workers that start wait for it to greet them."""

    def __init__(
        self,
        store: Store,
        record: RouterRecord,
        *,
        interval_s: float = INTERVAL_S,
        ttl_s: float = TTL_S,
    ) -> None:
        self._store = store
        self._record = record
        self._interval_s = interval_s
        self._ttl_s = ttl_s

    async def run(self) -> None:
        """Until cancelled. Call `leave` afterwards, as soon as it serves no longer."""
        while True:
            try:
                await self._store.register_router(self._record, ttl_s=self._ttl_s)
            except StoreError as error:
                log.debug("presence not written", extra={"why": str(error)})
            await asyncio.sleep(self._interval_s)

    async def leave(self) -> None:
        """Redis away forgets it by itself, a little later."""
        try:
            await self._store.deregister_router(self._record.router)
        except StoreError as error:
            log.debug("left without deregistering", extra={"why": str(error)})


class ComingPresence:
    """A worker between its first socket and its registration, which takes the entry away."""

    def __init__(
        self,
        store: Store,
        coming: ComingWorker,
        *,
        interval_s: float = INTERVAL_S,
        ttl_s: float = TTL_S,
    ) -> None:
        self.coming = coming
        """May be replaced as more of it is known."""
        self._store = store
        self._interval_s = interval_s
        self._ttl_s = ttl_s

    async def run(self) -> None:
        """Until cancelled: by who registers the worker, or withdraws it."""
        while True:
            try:
                await self._store.announce(self.coming, ttl_s=self._ttl_s)
            except StoreError as error:
                log.debug("presence not written", extra={"why": str(error)})
            await asyncio.sleep(self._interval_s)

    async def withdraw(self) -> None:
        """It comes no more."""
        try:
            await self._store.withdraw(self.coming.worker)
        except StoreError as error:
            log.debug("left without withdrawing", extra={"why": str(error)})
