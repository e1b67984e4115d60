"""What a greedy tenant leaves the others, and what overload does to the urgent.

    python -m bench.fairness [--workers 4] [--seconds 240]

The router's own queue, drain rate and placement before simulated workers, in virtual time
(`bench.placement_sim`): nothing of it depends on the machine. Beside it the same workload first
come, first served. A tenant's fair share is what it would get of the tokens that were served if
nobody got more than it asked for and the rest was divided equally. A request's tokens are its
prompt's and its answer's, counted when it has ended.
"""

import argparse
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.placement_sim.fleet import Fleet
from bench.placement_sim.hardware import Hardware
from bench.placement_sim.outcome import percentile
from bench.placement_sim.queue import FirstCome, JourneyQueue
from bench.placement_sim.request import Journey, Request, Route
from bench.placement_sim.rules.baton import Baton
from bench.record import record
from router.admission.drain_rate import DrainRate
from router.admission.expected_output import ExpectedOutput
from router.admission.fair_queue import FairQueue, QueueBounds
from router.admission.queued_request import QueuedRequest
from router.admission.waiting_room import PRESSING_FACTOR

SHARE_BAR = 0.9
"""Of its fair share, that every tenant beside a greedy one gets."""
TTFT_BAR = 1.5
"""Times its p99 without overload, that an urgent band's is with it."""
MAX_WAIT_S = 30.0
MAX_OUTPUT_TOKENS = 2048
WARM_S = 30.0
"""Not counted: the queue fills."""
HARDWARE = Hardware(prefill_step_tokens=2048)
"""A step of 8,192 prompt tokens takes 0.8 s, three times what an urgent request waits in all where
nothing else is: its share of the overload is then the step that has begun and the others in its
own (docs/lab.md)."""
GREEDY, NUM_MODEST = "greedy", 4
PROMPT_TOKENS, OUTPUT_TOKENS = 2000, 200
"""On average; prompts have half to one and a half times as many."""


class FairJourneys:
    """The router's queue, as `router.admission.waiting_room` uses it."""

    def __init__(self) -> None:
        self._queue = FairQueue(QueueBounds())
        self._rate = DrainRate()
        self._outputs = ExpectedOutput()
        self._queued: dict[Journey, QueuedRequest] = {}
        self._journeys: dict[QueuedRequest, Journey] = {}
        self._paid: dict[Journey, QueuedRequest] = {}
        self.shed: list[Journey] = []

    def must_wait(self, journey: Journey) -> bool:
        return self._queue.waits_before(journey.request.priority)

    def waits_behind(self, request: Request) -> bool:
        return self._queue.waits_behind(request.priority)

    def add(self, journey: Journey, *, now: float) -> None:
        asked, tenant = journey.request, journey.request.tenant
        queued = QueuedRequest(
            tenant=tenant,
            weight=1.0,
            band=asked.priority,
            num_prompt_tokens=asked.num_tokens,
            num_output_tokens=self._outputs.tokens_for(tenant, max_tokens=MAX_OUTPUT_TOKENS),
            ends_at=asked.arrives_at + MAX_WAIT_S,
        )
        wait_s = self._rate.seconds_for(self._queue.tokens_before(queued), now=now)
        if wait_s is not None and wait_s > MAX_WAIT_S:
            self.shed.append(journey)
            return
        self._queued[journey], self._journeys[queued] = queued, journey
        for out in self._queue.add(queued):
            self._forget(out.request)
        self._rate.note_waiting(bool(self._queue.num_requests), now=now)

    def head(self, *, now: float) -> Journey | None:
        while (head := self._queue.head()) is not None and head.ends_at <= now:
            self._queue.remove(head)
            self._rate.note_waiting(bool(self._queue.num_requests), now=now)
            self._forget(head)
        return None if head is None else self._journeys[head]

    def release(self, journey: Journey, *, now: float) -> None:
        queued = self._paid[journey] = self._queued.pop(journey)
        del self._journeys[queued]
        self._queue.remove(queued, pays=True)
        self._rate.note_turn(queued.num_tokens, now=now)
        self._rate.note_waiting(bool(self._queue.num_requests), now=now)

    def note_ended(self, journey: Journey) -> None:
        asked = journey.request
        self._outputs.note_ended(asked.tenant, asked.num_output)
        queued = self._paid.pop(journey, None)
        if queued is not None:
            more = asked.num_output - queued.num_output_tokens
            self._queue.charge(asked.tenant, asked.priority, more)

    def _forget(self, queued: QueuedRequest) -> None:
        journey = self._journeys.pop(queued)
        del self._queued[journey]
        self.shed.append(journey)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Requests of one tenant, that come by chance."""

    tenant: str
    per_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One workload served."""

    journeys: Sequence[Journey]
    ends_at: float

    def served_tokens(self) -> Counter[str]:
        """By tenant, of what ended while the queue was full and requests came."""
        served = Counter[str]()
        for one in self.journeys:
            if WARM_S <= one.ended_at <= self.ends_at:
                served[one.request.tenant] += one.request.num_tokens + one.request.num_output
        return served

    def asked_tokens(self) -> Counter[str]:
        asked = Counter[str]()
        for one in self.journeys:
            if WARM_S <= one.request.arrives_at <= self.ends_at:
                asked[one.request.tenant] += one.request.num_tokens + one.request.num_output
        return asked

    def ttft_p99_s(self, tenant: str) -> float:
        """Of all that came after the warm-up; one that was turned away makes it infinite."""
        own = [one for one in self.journeys if one.request.tenant == tenant]
        waits = [
            one.ttft_s if one.first_token_at else float("inf")
            for one in own
            if WARM_S <= one.request.arrives_at <= self.ends_at
        ]
        return percentile(waits, 0.99)


class _PressedBaton(Baton):
    """As the router's dispatcher asks for placements."""

    def __init__(self, queue: JourneyQueue) -> None:
        super().__init__()
        self._queue = queue

    def place_request(self, request: Request, *, now: float) -> Route | None:
        context = self._contexts.get(request.number) or self._context(request)
        pressing = isinstance(self._queue, FairJourneys) and self._queue.waits_behind(request)
        context.queue_factor = PRESSING_FACTOR if pressing else 1.0
        return super().place_request(request, now=now)


def serve(
    streams: Sequence[Stream], *, queue: JourneyQueue, num_workers: int, seconds: float
) -> Run:
    """`num_workers` of each role, until all that were not turned away have ended."""
    fleet = Fleet(
        _PressedBaton(queue),
        hardware=HARDWARE,
        num_prefill=num_workers,
        num_decode=num_workers,
        queue=queue,
    )
    fleet.run(_arrivals(streams, seconds))
    return Run(journeys=fleet.journeys, ends_at=seconds)


def fair_shares(asked: Mapping[str, float], total: float) -> dict[str, float]:
    """Max-min: nobody more than it asked for, what is left divided equally."""
    shares, left = dict[str, float](), total
    for number, tenant in enumerate(sorted(asked, key=lambda one: (asked[one], one))):
        shares[tenant] = min(asked[tenant], left / (len(asked) - number))
        left -= shares[tenant]
    return shares


def least_of_fair_share(run: Run) -> float:
    """Of the modest tenants, the part of its fair share that the worst served got."""
    served = run.served_tokens()
    shares = fair_shares(run.asked_tokens(), sum(served.values()))
    return min(served[tenant] / shares[tenant] for tenant in shares if tenant != GREEDY)


def capacity_per_s(num_workers: int) -> float:
    """Requests of the mean prompt that the prefill workers compute, by the hardware's own model."""
    prompt_s = HARDWARE.prefill_s(num_tokens=PROMPT_TOKENS, num_cached=0)
    return num_workers / prompt_s


def beside_a_greedy_one(part: float, *, num_workers: int) -> list[Stream]:
    """Each modest tenant asks for this part of the capacity, and one for ten times as much."""
    per_s = part * capacity_per_s(num_workers)
    modest = [Stream(tenant=f"modest-{i}", per_s=per_s) for i in range(NUM_MODEST)]
    return [*modest, Stream(tenant=GREEDY, per_s=10 * per_s)]


def with_urgent(load: float, *, num_workers: int) -> list[Stream]:
    """A fifth of the capacity is asked for urgently; all together `load` of it."""
    capacity = capacity_per_s(num_workers)
    return [
        Stream(tenant="urgent", per_s=0.2 * capacity, priority=-1),
        Stream(tenant="patient", per_s=(load - 0.2) * capacity),
    ]


def main() -> None:
    options = _options()
    size, seconds = options.workers, options.seconds
    results: dict[str, object] = {}
    for part in (0.18, 0.3):
        streams = beside_a_greedy_one(part, num_workers=size)
        for name, queue in (("fair", FairJourneys()), ("first_come", FirstCome())):
            run = serve(streams, queue=queue, num_workers=size, seconds=seconds)
            results[f"least_of_fair_share_{part}_{name}"] = round(least_of_fair_share(run), 3)
    for name, queues in (("fair", FairJourneys), ("first_come", FirstCome)):
        calm, busy = (
            serve(with_urgent(load, num_workers=size), queue=queues(), num_workers=size,
                  seconds=seconds).ttft_p99_s("urgent")
            for load in (0.6, 1.8)
        )  # fmt: skip
        results[f"urgent_ttft_p99_s_{name}"] = [round(calm, 3), round(busy, 3)]
        results[f"urgent_ttft_ratio_{name}"] = round(busy / calm, 2)
    bars = {"least_of_fair_share": SHARE_BAR, "urgent_ttft_ratio": TTFT_BAR}
    conditions = {"num_prefill": size, "num_decode": size, "seconds": seconds, "bars": bars}
    record("admission", conditions=conditions, results=results)


def _arrivals(streams: Sequence[Stream], seconds: float) -> list[Request]:
    chance, requests = random.Random(0), list[Request]()
    for stream in streams:
        now = chance.expovariate(stream.per_s)
        while now < seconds:
            requests.append(_request(stream, now, chance))
            now += chance.expovariate(stream.per_s)
    requests.sort(key=lambda one: one.arrives_at)
    return [_numbered(one, number) for number, one in enumerate(requests)]


def _request(stream: Stream, now: float, chance: random.Random) -> Request:
    return Request(
        number=0,
        arrives_at=now,
        num_tokens=round(PROMPT_TOKENS * chance.uniform(0.5, 1.5)),
        num_output=1 + min(MAX_OUTPUT_TOKENS, round(chance.expovariate(1 / OUTPUT_TOKENS))),
        blocks=(),
        tenant=stream.tenant,
        priority=stream.priority,
    )


def _numbered(request: Request, number: int) -> Request:
    """With blocks of its own: nothing is cached."""
    most = -(-2 * PROMPT_TOKENS // HARDWARE.block_tokens)
    num_blocks = request.num_tokens // HARDWARE.block_tokens
    blocks = tuple(range(number * most, number * most + num_blocks))
    return replace(request, number=number, blocks=blocks)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4, help="of each role")
    parser.add_argument("--seconds", type=float, default=240.0, help="of virtual time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
