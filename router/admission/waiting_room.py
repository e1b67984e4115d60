"""Requests that wait until a worker has room, woken one at a time, the next one first.

Late binding: where a request goes is decided when it has its turn, so that it goes to whoever is
free first. Nothing is asked over and over: a turn that led nowhere is repeated when somebody says
that there may be room. One event loop owns it.
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from protocol.process.metrics import RouterMetrics
from router.admission.drain_rate import DrainRate
from router.admission.expected_output import ExpectedOutput
from router.admission.fair_queue import FairQueue, QueueBounds
from router.admission.queued_request import RESUMED_BAND, QueuedRequest
from router.admission.shed import QueueShed, ShedReason

TURN_PAUSE_S = 0.005
"""Between two turns that led nowhere: a fleet of 1,000 workers reports 50,000 times a second, and a
decision about it takes 1 ms."""
PRESSING_FACTOR = 2.0
UNKNOWN_WAIT_S = 1.0
MAX_RETRY_AFTER_S = 60.0
_TOLD = {
    "full": "the queue is full, and others in it have waited longer or sent less",
    "share": "its tenant has its part of the queue",
    "wait": "it would wait longer than requests may",
    "deadline": "its deadline is nearer than its turn",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    bounds: QueueBounds = field(default_factory=QueueBounds)
    max_wait_s: float = 30.0


@dataclass(slots=True, eq=False)
class _Place:
    """One that waits, and what it waits for: its turn, or the news that it is sent away."""

    request: QueuedRequest
    since: float
    turn: asyncio.Future[None] | None = None
    """None: it has its turn at this moment."""
    shed: QueueShed | None = None


class WaitingRoom:
    def __init__(
        self,
        *,
        limits: QueueLimits,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._queue = FairQueue(limits.bounds)
        self._rate = DrainRate()
        self._outputs = ExpectedOutput()
        self._paid: dict[QueuedRequest, float] = {}
        """Those that had a turn and run, and since when they had waited."""
        self._places: dict[QueuedRequest, _Place] = {}
        self._holder: QueuedRequest | None = None
        """Has its turn and has not said what came of it."""
        self._may_have_room = False
        self._pause_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_tokens(self) -> int:
        """As expected, of those that wait."""
        return self._queue.num_tokens

    @property
    def is_idle(self) -> bool:
        """Nobody waits, and nobody that waited runs."""
        return not self._places and not self._paid

    def expected(
        self,
        *,
        tenant: str,
        weight: float,
        priority: int,
        num_prompt_tokens: int,
        max_tokens: int,
        ends_at: float,
    ) -> QueuedRequest:
        """A request as it would wait here. `note_ended` it if it ever had a worker."""
        return QueuedRequest(
            tenant=tenant,
            weight=weight,
            band=priority,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=self._outputs.tokens_for(tenant, max_tokens=max_tokens),
            ends_at=ends_at,
        )

    def must_wait(self, request: QueuedRequest) -> bool:
        """Whether a newcomer would overtake somebody if it were placed now."""
        return request not in self._places and self._queue.waits_before(request.band)

    def queue_factor(self, request: QueuedRequest) -> float:
        """How much more work than usual may be before it on a worker. Of who is more urgent than
        others that wait, for most of that work is theirs and comes after it there; of who lost its
        worker any, for its client has waited already."""
        if request.band == RESUMED_BAND:
            return math.inf
        return PRESSING_FACTOR if self._queue.waits_behind(request.band) else 1.0

    def is_waiting(self, request: QueuedRequest) -> bool:
        return request in self._places

    def resumed(self, request: QueuedRequest) -> QueuedRequest:
        """The same as one that had a worker and lost it: it waits before everybody, until its own
        deadline, and pays nothing again."""
        return replace(request, band=RESUMED_BAND)

    async def wait_turn(self, request: QueuedRequest, *, pause_s: float | None) -> None:
        """Until it is the next one and there may be room. To be called again when there was none,
        in its place as before, also by one that left with a worker which then had no room; `leave`
        ends it. `pause_s`: it was tried in vain, and nobody is to try sooner; None: it was not
        tried. Raises QueueShed."""
        place = self._places.get(request) or self._join(request)
        if self._holder is request:
            self._holder = None
        if pause_s is not None:
            self._may_have_room = False
            self._pause_until = max(self._pause_until, self._clock() + max(pause_s, TURN_PAUSE_S))
        if place.shed is not None:
            raise place.shed
        place.turn = asyncio.get_running_loop().create_future()
        self._offer_turn()
        ends_at = self._last_turn_at(place)
        try:
            async with asyncio.timeout(max(0.0, ends_at - self._clock())):
                await place.turn
        except TimeoutError:
            why: ShedReason = "deadline" if ends_at == request.ends_at else "wait"
            raise self._shed(request, why) from None

    def leave(self, request: QueuedRequest, *, is_placed: bool) -> None:
        """It waits no longer, with a worker or without. Does nothing for who does not wait."""
        place = self._places.pop(request, None)
        if place is None:
            return
        if place.shed is None:
            self._remove(place, pays=is_placed)
        if self._holder is request:
            self._holder = None
        self._offer_turn()

    def note_room(self) -> None:
        """A worker said something, or a request ended: there may be room that was not there."""
        self._may_have_room = True
        self._offer_turn()

    def note_ended(self, request: QueuedRequest, *, num_output_tokens: int) -> None:
        """What was not expected of one that waited is its tenant's to pay, or to get back."""
        self._outputs.note_ended(request.tenant, num_output_tokens)
        if request in self._paid:
            del self._paid[request]
            more = num_output_tokens - request.num_output_tokens
            self._queue.charge(request.tenant, request.band, more)
        self.note_room()

    def _last_turn_at(self, place: _Place) -> float:
        if place.request.band == RESUMED_BAND:
            return place.request.ends_at
        return min(place.since + self._limits.max_wait_s, place.request.ends_at)

    def _join(self, request: QueuedRequest) -> _Place:
        now = self._clock()
        if request in self._paid:
            return self._join_again(request, now)
        if request.band != RESUMED_BAND:
            self._check_wait(request, now)
        place = self._places[request] = _Place(request, now)
        self._metrics.queue_requests.labels(band_name(request.band)).inc()
        for one in self._queue.add(request):
            self._send_away(self._places[one.request], "share" if one.is_over_part else "full")
        self._rate.note_waiting(bool(self._queue.num_requests), now=now)
        return place

    def _join_again(self, request: QueuedRequest, now: float) -> _Place:
        place = self._places[request] = _Place(request, self._paid.pop(request))
        self._metrics.queue_requests.labels(band_name(request.band)).inc()
        self._queue.add_back(request)
        self._rate.note_turn(-request.num_tokens, now=now)
        self._rate.note_waiting(True, now=now)
        return place

    def _check_wait(self, request: QueuedRequest, now: float) -> None:
        """Raises QueueShed for a turn that would come too late, as far as that can be foretold."""
        wait_s = self._rate.seconds_for(self._queue.tokens_before(request), now=now)
        if wait_s is None:
            return
        until_deadline_s = request.ends_at - now
        if wait_s > min(self._limits.max_wait_s, until_deadline_s):
            is_deadline = until_deadline_s < self._limits.max_wait_s
            raise self._shed(request, "deadline" if is_deadline else "wait")

    def _send_away(self, place: _Place, why: ShedReason) -> None:
        """The queue has let go of it already."""
        place.shed = self._shed(place.request, why)
        self._metrics.queue_requests.labels(band_name(place.request.band)).dec()
        if place.turn is not None and not place.turn.done():
            place.turn.set_exception(place.shed)

    def _remove(self, place: _Place, *, pays: bool) -> None:
        now, request, band = self._clock(), place.request, band_name(place.request.band)
        self._queue.remove(request, pays=pays and request.band != RESUMED_BAND)
        self._metrics.queue_requests.labels(band).dec()
        if pays:
            if request.band != RESUMED_BAND:
                self._paid[request] = place.since
            self._rate.note_turn(request.num_tokens, now=now)
            self._metrics.queue_wait_s.labels(band).observe(now - place.since)
        self._rate.note_waiting(bool(self._queue.num_requests), now=now)

    def _offer_turn(self) -> None:
        """The turn to the next one, if nobody has it and there may be room; not too often."""
        if self._holder is not None or not self._may_have_room or self._timer is not None:
            return
        head = self._queue.head()
        if head is None:
            return
        place, now = self._places[head], self._clock()
        if place.turn is None or place.turn.done():
            return
        pause_s = self._pause_until - now
        if pause_s > 0:
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._after_pause)
            return
        self._holder = head
        place.turn.set_result(None)

    def _after_pause(self) -> None:
        self._timer = None
        self._offer_turn()

    def _shed(self, request: QueuedRequest, why: ShedReason) -> QueueShed:
        self._metrics.shed.labels(why).inc()
        wait_s = self._rate.seconds_for(self._queue.tokens_before(request), now=self._clock())
        if wait_s is None:
            wait_s = UNKNOWN_WAIT_S
        elif why == "wait":
            wait_s -= self._limits.max_wait_s
        retry_after_s = min(MAX_RETRY_AFTER_S, max(UNKNOWN_WAIT_S, wait_s))
        return QueueShed(_TOLD[why], why=why, retry_after_s=retry_after_s)


def band_name(priority: int) -> str:
    """Of a metric: clients may name 2^32 priorities."""
    if priority == 0:
        return "normal"
    return "urgent" if priority < 0 else "patient"
