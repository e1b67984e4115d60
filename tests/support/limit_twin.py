"""What the script of `protocol.store.limits` does, in Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.store.shares import WINDOW_S, LeasedShare, Renewal, ShareRequest


@dataclass(frozen=True, slots=True)
class _Record:
    at: float
    held: int
    want: int
    uses: tuple[int, ...]


@dataclass(slots=True)
class _Count:
    used: int = 0
    ages: list[int] = field(default_factory=lambda: [0] * WINDOW_S)

    def add(self, number: int, age: float) -> None:
        if number and age < WINDOW_S:
            self.used += number
            self.ages[max(0, math.floor(age))] += number


class LimitTwin:
    """A `router.tenants.rate_limits.ShareStore`."""

    def __init__(self) -> None:
        self._routers: dict[str, float] = {}
        self._records: dict[str, dict[str, _Record]] = {}

    async def renew(
        self,
        router: str,
        requests: Sequence[ShareRequest],
        *,
        ttl_s: float,
        begun_s: float,
        now: float | None = None,
    ) -> Renewal:
        assert now is not None, "a twin has no clock"
        self._routers[router] = now
        self._routers = {name: at for name, at in self._routers.items() if at >= now - ttl_s}
        shares = [self._share(router, one, ttl_s, begun_s, now) for one in requests]
        return Renewal(num_routers=len(self._routers), shares=tuple(shares))

    def _share(
        self, router: str, asked: ShareRequest, ttl_s: float, begun_s: float, now: float
    ) -> LeasedShare:
        records = self._records.setdefault(asked.name, {})
        count, held, unmet = _Count(), 0, 0
        for second, number in enumerate(asked.uses):
            count.add(number, second - 1 + begun_s)
        for name, record in list(records.items()):
            age = now - record.at
            if name == router:
                continue
            if age > ttl_s + WINDOW_S:
                del records[name]
                continue
            for second, number in enumerate(record.uses):
                count.add(number, second - 1 + age)
            if age <= ttl_s:
                held += record.held
                unmet += max(0, record.want - record.held)
            else:
                count.add(record.held, age - ttl_s)
        free, grant = asked.limit - count.used - held, 0
        if free > 0:
            grant = min(asked.want, free)
            if asked.want + unmet > free:
                grant = min(grant, math.ceil(free * asked.want / (asked.want + unmet)))
        records[router] = _Record(now - begun_s, grant, asked.want, asked.uses)
        return LeasedShare(held=grant, num_free=free - grant, ages=tuple(count.ages))
