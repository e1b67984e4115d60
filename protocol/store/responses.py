"""What clients asked us to keep: responses, and the items that they were made from.

Keys, by owner: `responses:{owner}:id:{id}` is a packed `KeptResponse` with a time to live;
`responses:{owner}:ends`, `:sizes` and `:bytes` are when each ends, how large it is, and the sum.

An owner has `max_bytes`; what would exceed them makes its oldest go first. One server's time, that
of Redis, decides what is old. Redis may lose all of it at any time: nobody is promised more than
"kept for a while".
"""

from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from protocol.store.address import RedisAddress
from protocol.store.connection import RedisConnection

OVERHEAD_BYTES = 512
"""Counted of each besides its own: what Redis needs for a key and its place in the books."""
LARGEST_SHARE = 8
"""One response has at most one part in so many of its owner's bytes."""
_MAX_FORGOTTEN = 1000
"""Of what has ended, forgotten by one call at most."""


class KeptResponse(msgspec.Struct, frozen=True, kw_only=True):
    response: bytes
    """JSON, as it was answered."""
    items: bytes
    """JSON: the list of items that it was made from, those of earlier responses first."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(KeptResponse)
_FORGET = """
local function forget(name)
  local size = redis.call('HGET', KEYS[2], name)
  if size then redis.call('DECRBY', KEYS[3], size) end
  redis.call('HDEL', KEYS[2], name)
  redis.call('ZREM', KEYS[1], name)
  return redis.call('DEL', name)
end
"""
_KEEP = f"""{_FORGET}
local name, size, ttl_ms, most = KEYS[4], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
forget(name)
for _, old in ipairs(
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, {_MAX_FORGOTTEN})) do
  forget(old)
end
while tonumber(redis.call('GET', KEYS[3]) or 0) + size > most do
  local oldest = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not oldest then redis.call('DEL', KEYS[3]) break end
  forget(oldest)
end
redis.call('SET', name, ARGV[1], 'PX', ttl_ms)
redis.call('ZADD', KEYS[1], now + ttl_ms, name)
redis.call('HSET', KEYS[2], name, size)
redis.call('INCRBY', KEYS[3], size)
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl_ms) end
"""
_DELETE = f"{_FORGET} return forget(KEYS[4])"


class ResponseStore(RedisConnection):
    """Of one router; all routers of a Redis share what it holds."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        ttl_s: float,
        max_bytes: Callable[[], int],
        deadline_s: float = 2.0,
    ) -> None:
        """`max_bytes`: of each owner, as it is when something is kept."""
        super().__init__(address, deadline_s=deadline_s)
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._max_bytes = max_bytes

    async def keep(self, owner: str, name: str, kept: KeptResponse) -> bool:
        """False: it is too large to be kept."""
        value = _encoder.encode(kept)
        size, most = len(value) + OVERHEAD_BYTES, self._max_bytes()
        if size > most // LARGEST_SHARE:
            return False
        keys, limits = self._keys(owner, name), (size, self._ttl_ms, most)
        async with self._deadline():
            await self._redis.eval(_KEEP, len(keys), *keys, value, *limits)
        return True

    async def find(self, owner: str, names: Sequence[str]) -> tuple[KeptResponse | None, ...]:
        """One for each name; None: it was never kept, or is no more."""
        async with self._deadline():
            values = await self._redis.mget([self._keys(owner, name)[-1] for name in names])
        return tuple(_decoded(cast(bytes | None, value)) for value in values)

    async def num_bytes(self, owner: str, names: Sequence[str]) -> int:
        """That `find` would read."""
        async with self._deadline(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.strlen(self._keys(owner, name)[-1])
            return sum(await pipe.execute())

    async def delete(self, owner: str, name: str) -> bool:
        """False: there was none."""
        keys = self._keys(owner, name)
        async with self._deadline():
            return bool(await self._redis.eval(_DELETE, len(keys), *keys))

    def _keys(self, owner: str, name: str) -> tuple[str, str, str, str]:
        of_owner = self._key(f"responses:{owner}")
        # Whatever name a client asks for, it is none of the books.
        return f"{of_owner}:ends", f"{of_owner}:sizes", f"{of_owner}:bytes", f"{of_owner}:id:{name}"


def _decoded(value: bytes | None) -> KeptResponse | None:
    try:
        return None if value is None else _decoder.decode(value)
    except msgspec.MsgspecError:
        return None
