"""One limit of one API key at this router: what it used, what it may still use, when more is free.

Any 60 seconds count, by whole seconds. What may be used is held beforehand, as
`protocol.store.limits` grants it; where Redis cannot be asked, a router has its equal part of the
limit. Pure; times are seconds of a clock that never goes back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.store.shares import NUM_SECONDS, WINDOW_S, LeasedShare, ShareRequest

LEASE_S = 0.5
"""Between two renewals: what one of them said of free room holds so long."""
TTL_S = 3.0
"""What is held is held so long, if it is not renewed."""
RETELL_S = 5.0
"""A Redis that came back empty learns so late of keys that are not used any more."""
AHEAD = 1.5
"""Of what is used between two renewals, held for the next ones."""
MOST_AHEAD = 0.05
"""Of a limit, that all routers together hold beyond what was asked for."""
LEAST_AHEAD = 0.1
"""Less than this is held for nobody: a key is not used any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Of one limit, what its key is told."""

    limit: int
    remaining: int
    reset_s: float
    """Until all of it is free again, if nothing more is used."""


class Allowance:
    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._uses: dict[int, int] = {}
        """By second."""
        self._held = 0
        self._held_until = 0.0
        self._num_free = 0
        self._ages: tuple[int, ...] = ()
        self._renewed_at = -math.inf
        self._pending = 0
        """Asked for, and not to be had before the next renewal."""
        self._is_renewing = False
        self._per_s = 0.0
        self._asked = 0
        """Since the last renewal."""
        self._counted_at = 0.0

    def is_idle(self, *, now: float) -> bool:
        """Nothing of it is worth telling anybody."""
        return not (self._recent(now) or self._held or self._pending or self._asked)

    def is_due(self, *, now: float) -> bool:
        """It is worth a renewal: something was asked for or is held, or Redis may have forgotten
        what was used."""
        is_busy = self._held or self._pending or self._asked
        return bool(is_busy) or now - self._renewed_at >= RETELL_S

    def spend(self, num: int, *, now: float) -> bool:
        """Use `num` of what is held; False when there is less."""
        if self._held < num or now >= self._held_until:
            return False
        self._held -= num
        self._asked += num
        self.use(num, now=now)
        return True

    def spend_of_part(self, num: int, *, num_routers: int, now: float) -> bool:
        """Likewise of this router's equal part, which nobody lends it. What is larger than that has
        it when nothing else was used for a minute."""
        used = sum(self._recent(now).values())
        if used and used + num > self._part(num_routers):
            return False
        self.use(num, now=now)
        return True

    def use(self, num: int, *, now: float) -> None:
        """Whether there is room or not."""
        self._uses[int(now)] = self._uses.get(int(now), 0) + num

    def give_back(self, num: int, *, second: int) -> None:
        """Of what was used in that second. What is older than a minute is given back already."""
        if second in self._uses:
            self._uses[second] = max(0, self._uses[second] - num)

    def want(self, num: int) -> None:
        """Of the next renewal."""
        self._pending += num

    def note_refused(self, num: int) -> None:
        """It counts as demand: of what becomes free, routers get parts by that."""
        self._asked += num

    def holds_too_much(self) -> bool:
        """What was granted for a request that was too large all the same keeps others from it."""
        return self._held > self._most_ahead

    def is_held_elsewhere(self, num: int) -> bool:
        """By what the last renewal said, so many are not free only because other routers hold more
        than they do for requests to come: what they do not use, they give up at once."""
        unused = self.limit - sum(self._ages)
        return num <= unused and unused - self._num_free - self._held > self._most_ahead

    def wait_s(self, num: int, *, now: float) -> float | None:
        """Until so many may be free, by what the last renewal said; None when that was too long ago
        to know, or there may be enough."""
        if self._is_renewing or now - self._renewed_at >= LEASE_S:
            return None
        room = self._num_free + self._held
        if room >= num:
            return None
        return self._until_free(num - room, self._ages, since=self._renewed_at, now=now)

    def wait_s_of_part(self, num: int, *, num_routers: int, now: float) -> float:
        part, recent = max(num, self._part(num_routers)), self._recent(now)
        ages = [0] * WINDOW_S
        for second, used in recent.items():
            ages[min(WINDOW_S - 1, max(0, math.floor(now) - second - 1))] += used
        return self._until_free(num - part + sum(recent.values()), ages, since=now, now=now)

    def request_share(self, *, num_routers: int, now: float) -> ShareRequest:
        """What is held is held no more: the answer says what is, `note_renewed` or `note_lost`."""
        passed_s = now - self._counted_at
        if passed_s > 0:
            kept = math.exp(-passed_s)
            self._per_s = self._per_s * kept + self._asked * (1 - kept) / passed_s
            self._asked, self._counted_at = 0, now
        ahead = min(self._per_s * LEASE_S * AHEAD, self.limit * MOST_AHEAD / num_routers)
        want = self._pending + (math.ceil(ahead) if ahead >= LEAST_AHEAD else 0)
        self._held = self._pending = 0
        self._is_renewing = True
        self._uses, this = self._recent(now), math.floor(now)
        uses = tuple(self._uses.get(this - age, 0) for age in range(NUM_SECONDS))
        return ShareRequest(name=self.name, limit=self.limit, want=want, uses=uses)

    def note_renewed(self, share: LeasedShare, *, sent_at: float) -> None:
        self._held, self._held_until = share.held, sent_at + TTL_S
        self._num_free, self._ages, self._renewed_at = share.num_free, share.ages, sent_at
        self._is_renewing = False

    def note_lost(self) -> None:
        """Nobody answered."""
        self._renewed_at, self._is_renewing = -math.inf, False

    def standing(self, *, now: float) -> Standing:
        """As the last renewal knows it, and what was used here since."""
        newest = next((age for age, used in enumerate(self._ages) if used), None)
        told_at = self._renewed_at
        reset_s = 0.0 if newest is None else WINDOW_S - newest - (now - told_at)
        if recent := self._recent(now):
            reset_s = max(reset_s, WINDOW_S + 1 - (now - max(recent)))
        remaining = min(self.limit, max(0, self._num_free + self._held))
        return Standing(limit=self.limit, remaining=remaining, reset_s=max(0.0, reset_s))

    def standing_of_part(self, *, num_routers: int, now: float) -> Standing:
        recent = self._recent(now)
        remaining = max(0, self._part(num_routers) - sum(recent.values()))
        reset_s = WINDOW_S + 1 - (now - max(recent)) if recent else 0.0
        return Standing(limit=self.limit, remaining=remaining, reset_s=reset_s)

    @property
    def _most_ahead(self) -> float:
        return max(1.0, self.limit * MOST_AHEAD)

    def _part(self, num_routers: int) -> int:
        return max(1, self.limit // num_routers)

    def _recent(self, now: float) -> dict[int, int]:
        """What counts still: of each second all until none of it is within the minute."""
        since = now - WINDOW_S - 1
        return {second: used for second, used in self._uses.items() if used and second > since}

    def _until_free(self, num: int, ages: Sequence[int], *, since: float, now: float) -> float:
        freed = 0
        for age in range(len(ages) - 1, -1, -1):
            freed += ages[age]
            if freed >= num:
                return max(0.0, WINDOW_S - age - (now - since))
        return float(WINDOW_S)
