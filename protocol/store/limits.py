"""What API keys have used in the last minute, and how much of what is left each router may use by
itself until it asks again.

Keys: `limits:routers` is who asks at the moment, by when each was last heard of;
`limits:of:{name}` is a hash of one limit: by router its packed record, when it was written, what
the router holds and wants, and what it used in each second of the last minute.

A router writes its whole record each time, so a call that was lost or came twice changes nothing,
and Redis coming back empty knows all again at the next call. What is used was held before, and what
is held is free: in no minute is more used than the limit. A router that is gone has used what it
held, as far as anybody knows: that is free again a minute later. Redis's time counts, and nobody's
clock is compared with another's.
"""

from collections.abc import Sequence

import msgspec

from protocol.store.connection import RedisConnection
from protocol.store.shares import NUM_SECONDS, WINDOW_S, LeasedShare, Renewal, ShareRequest

_RENEW = f"""
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
local me, ttl, begun = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZADD', KEYS[1], now, me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - ttl))
redis.call('EXPIRE', KEYS[1], math.ceil(ttl) + {WINDOW_S})
local told = {{redis.call('ZCARD', KEYS[1])}}
for i = 2, #KEYS do
  local at = 5 + (i - 2) * 3
  local limit, want = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local mine = cmsgpack.unpack(ARGV[at + 2])
  local used, held, unmet, ages = 0, 0, 0, {{}}
  for age = 1, {WINDOW_S} do ages[age] = 0 end
  local function count(uses, age)
    local first, last = math.floor(age), math.min(#uses, math.ceil({NUM_SECONDS} - age) - 1)
    for second = 1, last do
      local number = uses[second]
      if number ~= 0 then
        local slot = second - 1 + first
        if slot < 1 then slot = 1 end
        used, ages[slot] = used + number, ages[slot] + number
      end
    end
  end
  count(mine, begun)
  local records = redis.call('HGETALL', KEYS[i])
  for r = 1, #records, 2 do
    if records[r] ~= me then
      local record = cmsgpack.unpack(records[r + 1])
      local age = now - record[1]
      if age > ttl + {WINDOW_S} then
        redis.call('HDEL', KEYS[i], records[r])
      else
        count(record[4], age)
        if age <= ttl then
          held = held + record[2]
          unmet = unmet + math.max(0, record[3] - record[2])
        else
          count({{record[2]}}, age - ttl + 1)
        end
      end
    end
  end
  local free, grant = limit - used - held, 0
  if free > 0 then
    grant = math.min(want, free)
    if want + unmet > free then
      grant = math.min(grant, math.ceil(free * want / (want + unmet)))
    end
  end
  redis.call('HSET', KEYS[i], me, cmsgpack.pack({{now - begun, grant, want, mine}}))
  redis.call('EXPIRE', KEYS[i], math.ceil(ttl) + {WINDOW_S})
  told[#told + 1] = {{grant, free - grant, cmsgpack.pack(ages)}}
end
return told
"""


_pack = msgspec.msgpack.Encoder().encode
_ages = msgspec.msgpack.Decoder(tuple[int, ...])


class LimitStore(RedisConnection):
    """Of one router; all routers of a Redis share what it holds."""

    async def renew(
        self,
        router: str,
        requests: Sequence[ShareRequest],
        *,
        ttl_s: float,
        begun_s: float,
        now: float | None = None,
    ) -> Renewal:
        """One call whatever the number of limits. What is granted is held for `ttl_s` from now on.
        `begun_s`: of the second that has begun, how much has passed. `now`: seconds; None: by
        Redis's clock."""
        names = ["limits:routers", *(f"limits:of:{one.name}" for one in requests)]
        keys = [self._key(name) for name in names]
        words: list[str | bytes | float] = ["" if now is None else now, router, ttl_s, begun_s]
        for one in requests:
            words += [one.limit, one.want, _pack(one.uses)]
        async with self._deadline():
            told = await self._redis.eval(_RENEW, len(keys), *keys, *words)
        shares = (
            LeasedShare(held=held, num_free=num_free, ages=_ages.decode(ages))
            for held, num_free, ages in told[1:]
        )
        return Renewal(num_routers=told[0], shares=tuple(shares))
