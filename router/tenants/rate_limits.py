"""What API keys may ask for in a minute, kept by all routers together.

No request asks Redis: routers hold shares of each limit, renewed in the background for all keys at
once. Who comes when nothing is held waits for the next renewal, a few milliseconds. While Redis
does not answer, each router enforces its equal part, by the number of routers last known.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from protocol.errors import StoreError
from protocol.process.metrics import RouterMetrics
from protocol.store.shares import Renewal, ShareRequest
from router.tenants.allowance import LEASE_S, TTL_S, Allowance, Standing
from router.tenants.api_key import ApiKey
from router.tenants.limit_reached import LimitKind, LimitReached

MIN_PAUSE_S = 0.02
"""Between two renewals, however many keys want more."""
MOST_AT_ONCE = 128
"""Limits of one call of Redis, which serves nobody else meanwhile: 185 us each with 32 routers
(docs/decisions/0032)."""
MAX_TRIES = 3
"""Of a request for which there would be enough, if other routers did not hold it: so many renewals,
in which those that hold it in vain have given it up."""
log = logging.getLogger("baton.limits")


class ShareStore(Protocol):
    """What is needed of `protocol.store.limits.LimitStore`."""

    async def renew(
        self,
        router: str,
        requests: list[ShareRequest],
        *,
        ttl_s: float,
        begun_s: float,
        now: float | None = None,
    ) -> Renewal: ...


class Charge:
    """What a request was charged of one limit."""

    def __init__(self, allowance: Allowance, num: int, clock: Callable[[], float]) -> None:
        self._allowance = allowance
        self._num = num
        self._clock = clock
        self._second = int(clock())

    def settle(self, num: int) -> None:
        """It was so many in the end. Less is given back to the second in which it was charged;
        more is used now, whether there is room or not."""
        if num < self._num:
            self._allowance.give_back(self._num - num, second=self._second)
        elif num > self._num:
            self._allowance.use(num - self._num, now=self._clock())
        self._num = num


class RateLimits:
    """Of one router. Without a store it is alone. One event loop owns it."""

    def __init__(
        self,
        *,
        router: str,
        store: ShareStore | None,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}
        self._num_routers = 1
        self._is_leased = store is not None
        self._wanted = asyncio.Event()
        self._renewed = asyncio.Event()

    async def charge(self, key: ApiKey, kind: LimitKind, num: int) -> Charge | None:
        """None where the key has no such limit. Raises LimitReached."""
        allowance = self._allowance(key, kind)
        if allowance is None:
            return None
        if num > allowance.limit:
            raise self._refusal(allowance, kind, num, None)
        patience = MAX_TRIES
        while not self._spend(allowance, num):
            wait_s = self._wait_s(allowance, num)
            if wait_s is not None:
                patience -= 1
                is_held_elsewhere = self._is_leased and allowance.is_held_elsewhere(num)
                if not patience or not is_held_elsewhere:
                    self._note_refused(allowance, num)
                    wait_s = LEASE_S if is_held_elsewhere else wait_s
                    raise self._refusal(allowance, kind, num, wait_s)
            allowance.want(num)
            self._wanted.set()
            await self._renewed.wait()
        return Charge(allowance, num, self._clock)

    def standings(self, key: ApiKey) -> dict[LimitKind, Standing]:
        """Of each limit that the key has."""
        found = dict[LimitKind, Standing]()
        kinds: tuple[LimitKind, ...] = ("requests", "tokens")
        for kind in kinds:
            allowance, now = self._allowance(key, kind), self._clock()
            if allowance is not None and self._is_leased:
                found[kind] = allowance.standing(now=now)
            elif allowance is not None:
                num = self._num_routers
                found[kind] = allowance.standing_of_part(num_routers=num, now=now)
        return found

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_S):
                    await self._wanted.wait()
            await self.renew()
            await asyncio.sleep(MIN_PAUSE_S)

    async def renew(self, *, now: float | None = None) -> None:
        """Asks for the shares of all limits that are in use, `MOST_AT_ONCE` a call. `now`: what
        stands for Redis's clock, in seconds; None: that clock."""
        self._wanted.clear()
        if self._store is None:
            return
        began_at = self._clock()
        self._forget_idle(began_at)
        asking = [one for one in self._allowances.values() if one.is_due(now=began_at)]
        try:
            for start in range(0, max(1, len(asking)), MOST_AT_ONCE):  # none: we are here
                await self._renew_some(self._store, asking[start : start + MOST_AT_ONCE], now)
        except StoreError as error:
            self._note_leased(False, str(error))
        else:
            self._note_leased(True, "")
        finally:
            self._renewed.set()
            self._renewed = asyncio.Event()

    async def _renew_some(
        self, store: ShareStore, asking: Sequence[Allowance], now: float | None
    ) -> None:
        """Raises StoreError."""
        sent_at = self._clock()
        requests = [one.request_share(num_routers=self._num_routers, now=sent_at) for one in asking]
        try:
            renewal = await store.renew(
                self._router, requests, ttl_s=TTL_S, begun_s=sent_at % 1, now=now
            )
        except StoreError:
            for allowance in asking:
                allowance.note_lost()
            raise
        for allowance, share in zip(asking, renewal.shares, strict=True):
            allowance.note_renewed(share, sent_at=sent_at)
        self._num_routers = max(1, renewal.num_routers)

    def _allowance(self, key: ApiKey, kind: LimitKind) -> Allowance | None:
        limit = key.requests_per_minute if kind == "requests" else key.tokens_per_minute
        if limit is None:
            return None
        name = f"{key.name}:{kind}"
        known = self._allowances.get(name)
        if known is None:
            known = self._allowances[name] = Allowance(name, limit)
        known.limit = limit  # the keys file may have changed
        return known

    def _spend(self, allowance: Allowance, num: int) -> bool:
        now = self._clock()
        if self._is_leased:
            return allowance.spend(num, now=now)
        return allowance.spend_of_part(num, num_routers=self._num_routers, now=now)

    def _wait_s(self, allowance: Allowance, num: int) -> float | None:
        now = self._clock()
        if self._is_leased:
            return allowance.wait_s(num, now=now)
        return allowance.wait_s_of_part(num, num_routers=self._num_routers, now=now)

    def _note_refused(self, allowance: Allowance, num: int) -> None:
        allowance.note_refused(num)
        if allowance.holds_too_much():
            self._wanted.set()  # to give it up at once

    def _refusal(
        self, allowance: Allowance, kind: LimitKind, num: int, wait_s: float | None
    ) -> LimitReached:
        self._metrics.limited.labels(kind).inc()
        return LimitReached(kind, limit=allowance.limit, num=num, retry_after_s=wait_s)

    def _forget_idle(self, now: float) -> None:
        for name in [name for name, one in self._allowances.items() if one.is_idle(now=now)]:
            del self._allowances[name]

    def _note_leased(self, is_leased: bool, why: str) -> None:
        if self._is_leased and not is_leased:
            remedy = "none if Redis comes back; until then each router enforces its part of limits"
            log.warning("limits not shared", extra={"why": why, "remedy": remedy})
        elif is_leased and not self._is_leased:
            log.info("limits shared again", extra={"routers": self._num_routers})
        self._is_leased = is_leased
        self._metrics.limits_leased.set(is_leased)
