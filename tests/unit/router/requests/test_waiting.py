"""Requests that wait for room, against fake workers over real sockets on loopback."""

import asyncio
from dataclasses import replace
from math import inf

import pytest
from support.dispatching import (
    SOON_AGAIN,
    answers,
    queued,
    run,
)
from support.eventually import soon
from support.fake_cluster import (
    APART,
    Heard,
    collect,
    fake_cluster,
    request,
)
from support.fake_worker import Act

from router.admission.shed import QueueShed
from router.admission.waiting_room import PRESSING_FACTOR, QueueLimits
from router.placement.place import Placement, PlacementRefusal
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.dispatch import DispatchLimits
from router.requests.events import (
    RequestFailed,
)


def test_a_full_worker_is_passed_over_for_the_next() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("refuse")], "decode-0": [Act("refuse")]}
        async with fake_cluster(prefill=2, decode=2, plans=plans) as cluster:
            ended = await answers(cluster)
            last = ended.trace.attempts[-1]
            assert (last.prefill, last.decode) == ("prefill-1", "decode-1")

    run(test)


def test_a_request_that_every_worker_refused_waits_and_goes_to_whoever_has_room_first() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("refuse")] * 99, "decode-1": [Act("refuse")]}
        async with fake_cluster(decode=2, plans=plans, limits=SOON_AGAIN) as cluster:
            ended = await answers(cluster)
            assert ended.trace.attempts[-1].decode == "decode-1"
            assert queued(cluster) == 0

    run(test)


class Busy:
    """Has every worker be busy until told otherwise."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_busy = True
        self.factors: list[float] = []
        place = Candidates.place_request

        def place_request(
            candidates: Candidates, context: RequestContext, *, now: float
        ) -> Placement | PlacementRefusal:
            self.factors.append(context.queue_factor)
            if self.is_busy:
                return PlacementRefusal(why="saturated", reason="busy")
            return place(candidates, context, now=now)

        patch.setattr(Candidates, "place_request", place_request)


def test_requests_wait_for_a_saturated_fleet_and_are_placed_when_a_worker_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        busy = Busy(monkeypatch)
        async with fake_cluster(decode=1) as cluster:
            waiting = [
                asyncio.create_task(collect(cluster, request(name=name)), name=name)
                for name in ("first", "second")
            ]
            await soon(lambda: queued(cluster) == 2)
            busy.is_busy = False
            cluster.workers["decode-0"].say()
            await asyncio.wait_for(asyncio.gather(*waiting), 10)
            assert queued(cluster) == 0 and set(busy.factors) == {1.0}

    run(test)


def test_the_urgent_and_those_that_lost_their_worker_may_have_more_work_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        plans, busy = {"decode-0": [Act("die", 2)]}, Busy(monkeypatch)
        async with fake_cluster(decode=2, plans=plans) as cluster:
            patient = asyncio.create_task(collect(cluster, request(name="patient")), name="patient")
            await soon(lambda: queued(cluster) == 1)
            busy.is_busy, busy.factors = False, []
            await collect(cluster, replace(request(name="urgent"), priority=-1))
            await patient
            assert busy.factors[0] == PRESSING_FACTOR and inf in busy.factors

    run(test)


def test_who_waits_too_long_for_room_is_told_when_to_come_back() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("refuse")] * 99}
        limits = DispatchLimits(full_pause_s=0.01, queue=QueueLimits(max_wait_s=0.5))
        async with fake_cluster(decode=1, plans=plans, limits=limits) as cluster:
            with pytest.raises(QueueShed) as shed:
                await collect(cluster, request())
            assert shed.value.why == "wait" and shed.value.retry_after_s >= 1.0
            await cluster.until_idle()
            assert queued(cluster) == 0

    run(test)


def test_who_hangs_up_while_it_waits_leaves_no_trace() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("refuse")]}
        async with fake_cluster(decode=1, plans=plans, limits=SOON_AGAIN) as cluster:
            cluster.workers["decode-0"].plan.extend([Act("refuse")] * 99)
            waiting = asyncio.create_task(collect(cluster, request()), name="waiting")
            await soon(lambda: queued(cluster) == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert queued(cluster) == 0
            cluster.workers["decode-0"].plan.clear()
            await answers(cluster)

    run(test)


def test_a_worker_is_told_what_is_left_of_a_request_s_time_after_it_waited() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("refuse")]}
        async with fake_cluster(decode=1, plans=plans, limits=SOON_AGAIN) as cluster:
            await answers(cluster)
            first, second = (one.deadline_s for one in cluster.workers["decode-0"].seen)
            assert second < first <= 20.0

    run(test)


def test_a_stream_that_has_begun_waits_for_room_instead_of_failing() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("refuse")] * 3}
        limits = DispatchLimits(rules=APART, full_pause_s=0.01, queue=QueueLimits(max_wait_s=60.0))
        async with fake_cluster(prefill=1, decode=1, plans=plans, limits=limits) as cluster:
            await answers(cluster)

    run(test)


def test_a_stream_that_has_begun_is_never_sent_away_but_ends_at_its_deadline() -> None:
    async def test() -> None:
        plans, heard = {"decode-0": [Act("die", 3)], "decode-1": [Act("refuse")] * 999}, Heard()
        limits = DispatchLimits(rules=APART, full_pause_s=0.01, queue=QueueLimits(max_wait_s=0.1))
        async with fake_cluster(prefill=1, decode=2, plans=plans, limits=limits) as cluster:
            with pytest.raises(RequestFailed) as failed:
                await collect(cluster, request(deadline_s=1.0), heard)
            assert failed.value.code == "deadline"
            assert heard.tokens
            await cluster.until_idle()

    run(test)
