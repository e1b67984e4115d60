"""The requests of a router that wait for a worker, in the order in which they get one.

Strict bands by priority, in each the round robin of `router.admission.band`. Bounded in requests
and in tokens: beyond that the newest request of the greediest tenant of the last band goes, which
is not always the one that came. Pure.
"""

from collections import Counter
from dataclasses import dataclass

from router.admission.band import Band
from router.admission.queued_request import RESUMED_BAND, QueuedRequest

TENANT_PART = 0.75
"""Of the queue that one tenant may fill, so that there is always room for another."""

MOST_DEBTORS = 4096
"""Without keys every address is a tenant, and an overload may last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBounds:
    num_requests: int = 512
    num_tokens: int = 2 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedOut:
    """One that had to go."""

    request: QueuedRequest
    is_over_part: bool
    """Its tenant had more of the queue than one may; else all of them together had."""


class FairQueue:
    def __init__(self, bounds: QueueBounds) -> None:
        self._bounds = bounds
        self._bands: dict[int, Band] = {}
        self._num_of: Counter[str] = Counter()
        self._tokens_of: Counter[str] = Counter()
        self._debts: dict[str, float] = {}
        """Of tenants that left with a deficit below 0, the last `MOST_DEBTORS`; forgotten when
        nobody waits."""
        self.num_requests = 0
        self.num_tokens = 0

    def add(self, request: QueuedRequest) -> tuple[PushedOut, ...]:
        """Those who have to go for it: none, others, or itself alone. Who waits alone may be larger
        than the bound."""
        self._enter(request)
        gone = list[PushedOut]()
        while self.num_requests > 1 and (one := self._in_excess(request)) is not None:
            self.remove(one.request)
            if one.request is request:
                for other in reversed(gone):  # each was its tenant's newest: it is again
                    self._enter(other.request)
                return (one,)
            gone.append(one)
        return tuple(gone)

    def add_back(self, request: QueuedRequest) -> None:
        """It had its turn and came to nothing: it is its tenant's first again, and has not paid.
        Nobody goes for it: it was here before them."""
        band = self._bands.setdefault(request.band, Band())
        band.add_back(request, deficit=self._deficit_of(request, band))
        self._count(request, 1)

    def head(self) -> QueuedRequest | None:
        """Whose turn it is; the same until it is removed or somebody of a better band comes."""
        return self._bands[min(self._bands)].head() if self._bands else None

    def remove(self, request: QueuedRequest, *, pays: bool = False) -> None:
        """It leaves; `pays`: with a worker, for its tokens."""
        tenant, band = request.tenant, self._bands[request.band]
        debt = band.remove(request, pays=pays)
        self._owe(tenant, -debt)
        if not band:
            del self._bands[request.band]
        self._count(request, -1)
        if not self.num_requests:
            self._debts.clear()

    def charge(self, tenant: str, band: int, num_tokens: float) -> None:
        """A request of before cost so much more than expected, or less if below 0. Forgotten while
        nobody waits: then nobody was kept from anything."""
        if not self.num_requests:
            return
        line = self._bands[band].line(tenant) if band in self._bands else None
        if line is not None:
            line.deficit -= num_tokens
        else:
            self._owe(tenant, num_tokens)

    def _owe(self, tenant: str, num_tokens: float) -> None:
        """So many more, or less if below 0; nobody has credit."""
        debt = self._debts.pop(tenant, 0.0) - num_tokens
        if debt < 0:
            self._debts[tenant] = debt
        while len(self._debts) > MOST_DEBTORS:
            del self._debts[next(iter(self._debts))]

    def waits_before(self, band: int) -> bool:
        """Whether somebody waits whom a newcomer of that band may not overtake."""
        return bool(self._bands) and min(self._bands) <= band

    def waits_behind(self, band: int) -> bool:
        """Whether somebody waits who is less urgent."""
        return bool(self._bands) and max(self._bands) > band

    def tokens_before(self, request: QueuedRequest) -> float:
        """Tokens that have their turn before one that waits, or would wait, as its tenant's last:
        of all better bands, of its own tenant, and of the others of its band as many as their
        weights give them meanwhile."""
        better = (band for number, band in self._bands.items() if number < request.band)
        before = sum(band.num_tokens for band in better)
        lines = dict(self._bands[request.band].lines()) if request.band in self._bands else {}
        own = lines.pop(request.tenant, None)
        of_tenant = own.num_tokens if own is not None else 0
        if own is not None and request in own.requests:
            of_tenant -= request.num_tokens
        until_it = (of_tenant + request.num_tokens) / request.weight
        others = sum(min(line.num_tokens, until_it * line.weight) for line in lines.values())
        return before + of_tenant + others

    def _in_excess(self, newest: QueuedRequest) -> PushedOut | None:
        """Who has to go first, if anybody has to."""
        tenant, is_over_part = newest.tenant, self._is_over_part(newest.tenant)
        if is_over_part:
            last = max(number for number, band in self._bands.items() if band.line(tenant))
        elif self._is_too_long():
            last = max(self._bands)
            lines = self._bands[last].lines()
            tenant = max((line.num_tokens / line.weight, name) for name, line in lines)[1]
        else:
            return None
        if last == RESUMED_BAND:
            return None
        line = self._bands[last].line(tenant)
        assert line is not None
        return PushedOut(request=line.requests[-1], is_over_part=is_over_part)

    def _is_over_part(self, tenant: str) -> bool:
        num, bounds = self._num_of[tenant], self._bounds
        is_many = num > bounds.num_requests * TENANT_PART
        is_large = self._tokens_of[tenant] > bounds.num_tokens * TENANT_PART
        return num > 1 and (is_many or is_large)

    def _is_too_long(self) -> bool:
        bounds = self._bounds
        return self.num_requests > bounds.num_requests or self.num_tokens > bounds.num_tokens

    def _enter(self, request: QueuedRequest) -> None:
        band = self._bands.setdefault(request.band, Band())
        band.add(request, deficit=self._deficit_of(request, band))
        self._count(request, 1)

    def _deficit_of(self, request: QueuedRequest, band: Band) -> float:
        """What its tenant brings along that does not wait there yet."""
        waits = band.line(request.tenant) is not None
        return 0.0 if waits else self._debts.pop(request.tenant, 0.0)

    def _count(self, request: QueuedRequest, sign: int) -> None:
        self.num_requests += sign
        self.num_tokens += sign * request.num_tokens
        self._num_of[request.tenant] += sign
        self._tokens_of[request.tenant] += sign * request.num_tokens
        if not self._num_of[request.tenant]:
            del self._num_of[request.tenant], self._tokens_of[request.tenant]
