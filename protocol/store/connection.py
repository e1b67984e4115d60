"""A connection to Redis.

Every call has a deadline and raises StoreError when Redis does not answer; no call retries. All
keys begin with the address's prefix.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from protocol.errors import SettingsError, StoreError
from protocol.store.address import RedisAddress
from protocol.store.contact import Contact
from protocol.store.resolving import resolve_in_threads


class RedisConnection:
    """One of a kind per process; `close` it in the same event loop. Raises SettingsError for a URL
    that is none of a Redis."""

    def __init__(self, address: RedisAddress, *, deadline_s: float = 2.0) -> None:
        self.address = address
        self._deadline_s = deadline_s
        tls: dict[str, Any] = {"ssl_ca_certs": address.ca} if address.ca else {}
        try:
            self._redis = Redis.from_url(
                address.url,
                username=address.username or None,
                password=address.password or None,
                **tls,
                socket_timeout=None,  # `_deadline` bounds every call, a blocking read included
                socket_connect_timeout=deadline_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # XREAD answers a list; under RESP3 its shape differs by version
                max_connections=16,
            )
            resolve_in_threads(self._redis.connection_pool)
            self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # reads the options
        except (ValueError, TypeError) as error:
            raise SettingsError(f"redis: {error}") from error
        self.contact = Contact(address.place)
        """For those who ask again and again, to say what came of it."""

    async def close(self) -> None:
        async with self._deadline():
            await self._redis.aclose()

    async def ping(self) -> None:
        async with self._deadline():
            await self._redis.ping()

    def _key(self, name: str) -> str:
        return self.address.prefix + name

    @asynccontextmanager
    async def _deadline(self, extra_s: float = 0.0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._deadline_s + extra_s):
                yield
        except TimeoutError as error:
            raise StoreError(f"Redis did not answer within {self._deadline_s} s") from error
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis: {error}") from error
