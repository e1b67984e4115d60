"""An entry in Redis that says that a process is here: of a router, and of a worker that loads.

Written again and again, so that it dies soon after its process. Redis away is no error.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from protocol.errors import StoreError
from protocol.membership import INTERVAL_S, TTL_S
from protocol.process.run import beside
from protocol.store.workers import ComingWorker, RouterRecord, Store


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
        """Until cancelled. Call `leave` as soon as it serves no longer."""
        while True:
            with suppress(StoreError):  # Redis away is said by whoever watches the workers
                await self._store.register_router(self._record, ttl_s=self._ttl_s)
            await asyncio.sleep(self._interval_s)

    async def leave(self) -> None:
        """Redis away forgets it by itself, a little later."""
        with suppress(StoreError):
            await self._store.deregister_router(self._record.router)


class ComingPresence:
    """A worker between its first socket and its registration, which takes the entry away. To be
    entered once; an error that is none of Redis ends its block."""

    def __init__(
        self,
        store: Store,
        coming: ComingWorker,
        *,
        interval_s: float = INTERVAL_S,
        ttl_s: float = TTL_S,
    ) -> None:
        self._store = store
        self._coming = coming
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._announcing = beside(self._announce(), name="announce")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = await self._announcing.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """It comes no more, if it has not come."""
        comes = self._task is not None
        try:
            await self._announcing.__aexit__(kind, error, trace)
        finally:
            if comes:
                with suppress(StoreError):
                    await self._store.withdraw(self._coming.worker)

    async def end(self) -> None:
        """It registers now. The entry stays until then, or dies soon."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _announce(self) -> None:
        while True:
            with suppress(StoreError):  # Redis away is said by whoever waits for it
                await self._store.announce(self._coming, ttl_s=self._ttl_s)
            await asyncio.sleep(self._interval_s)
