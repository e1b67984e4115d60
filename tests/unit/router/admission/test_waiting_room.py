"""Turns given one at a time, and every way to leave."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.eventually import soon

from protocol.process.metrics import RouterMetrics
from router.admission.fair_queue import QueueBounds
from router.admission.queued_request import QueuedRequest
from router.admission.shed import QueueShed
from router.admission.waiting_room import QueueLimits, WaitingRoom


class Fleet:
    """Has room for so many, and a waiting room before it."""

    def __init__(self, limits: QueueLimits) -> None:
        self.metrics = RouterMetrics()
        self.room = WaitingRoom(limits=limits, metrics=self.metrics)
        self.num_free = 0
        self.num_tries = 0
        self.placed: list[QueuedRequest] = []
        self.tasks: list[asyncio.Task[None]] = []

    def asked(
        self, tenant: str = "a", *, priority: int = 0, ends_in_s: float = 60
    ) -> QueuedRequest:
        return self.room.expected(
            tenant=tenant, weight=1.0, priority=priority, num_prompt_tokens=100, max_tokens=0,
            ends_at=asyncio.get_running_loop().time() + ends_in_s,
        )  # fmt: skip

    async def serve(self, request: QueuedRequest) -> None:
        """As a dispatcher does."""
        is_placed = False
        try:
            while (waits := self.room.must_wait(request)) or not self._place(request):
                await self.room.wait_turn(request, pause_s=None if waits else 0.0)
            is_placed = True
        finally:
            self.room.leave(request, is_placed=is_placed)

    async def wait(self, request: QueuedRequest) -> asyncio.Task[None]:
        """A task that waits in the room by now, or is over."""
        task = asyncio.create_task(self.serve(request), name="request")
        self.tasks.append(task)
        for _ in range(3):
            await asyncio.sleep(0)
        return task

    async def free(self, num: int = 1) -> None:
        self.num_free += num
        self.room.note_room()

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"baton_router_{name}", labels)

    def _place(self, request: QueuedRequest) -> bool:
        self.num_tries += 1
        if not self.num_free:
            return False
        self.num_free -= 1
        self.placed.append(request)
        return True


def run(test: Callable[[Fleet], Awaitable[None]], limits: QueueLimits | None = None) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            fleet = Fleet(limits or QueueLimits())
            try:
                await test(fleet)
            finally:
                for task in fleet.tasks:
                    task.cancel()

    asyncio.run(bounded())


def test_who_waits_goes_when_there_is_room_in_order_and_no_sooner() -> None:
    async def test(fleet: Fleet) -> None:
        order = [fleet.asked("a"), fleet.asked("a"), fleet.asked("a", priority=-1)]
        tasks = [await fleet.wait(one) for one in order]
        assert fleet.placed == [] and fleet.sample("queue_requests", band="normal") == 2
        await fleet.free(2)
        await soon(lambda: len(fleet.placed) == 2)
        assert fleet.placed == [order[2], order[0]] and not tasks[1].done()
        await fleet.free()
        await asyncio.wait_for(tasks[1], 5)
        assert fleet.sample("queue_requests", band="normal") == 0
        assert fleet.sample("queue_wait_seconds_count", band="normal") == 2

    run(test)


def test_nobody_is_asked_again_until_there_may_be_room() -> None:
    async def test(fleet: Fleet) -> None:
        for _ in range(50):
            await fleet.wait(fleet.asked())
        before = fleet.num_tries
        fleet.room.note_room()
        await soon(lambda: fleet.num_tries == before + 1)
        for _ in range(100):
            await asyncio.sleep(0)
        assert fleet.num_tries == before + 1

    run(test)


def test_a_thousand_reports_at_once_are_one_try() -> None:
    async def test(fleet: Fleet) -> None:
        await fleet.wait(fleet.asked())
        before = fleet.num_tries
        for _ in range(1_000):
            fleet.room.note_room()
            await asyncio.sleep(0)
        assert fleet.num_tries - before < 100

    run(test)


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    async def test(fleet: Fleet) -> None:
        first = fleet.asked()
        await fleet.wait(first)
        fleet.num_free = 1  # and nobody has said so yet
        second = fleet.asked("b")
        await fleet.wait(second)
        assert fleet.placed == []
        urgent = fleet.asked("b", priority=-1)
        await fleet.wait(urgent)
        assert fleet.placed == [urgent]

    run(test)


def test_who_hangs_up_leaves_no_trace_and_gives_its_turn_on() -> None:
    async def test(fleet: Fleet) -> None:
        tasks = [await fleet.wait(fleet.asked()) for _ in range(3)]
        fleet.num_free = 1
        fleet.room.note_room()
        tasks[0].cancel()  # it has its turn and never takes it
        await asyncio.wait(tasks[:1])
        tasks[2].cancel()
        await asyncio.wait_for(tasks[1], 5)
        await asyncio.wait(tasks[2:])
        assert fleet.sample("queue_requests", band="normal") == 0
        assert fleet.room.num_tokens == 0
        assert not fleet.room.must_wait(fleet.asked())

    run(test)


@pytest.mark.parametrize(("ends_in_s", "why"), [(60.0, "wait"), (0.01, "deadline")])
def test_who_waited_too_long_is_sent_away(ends_in_s: float, why: str) -> None:
    async def test(fleet: Fleet) -> None:
        with pytest.raises(QueueShed) as raised:
            await fleet.serve(fleet.asked(ends_in_s=ends_in_s))
        assert raised.value.why == why and raised.value.retry_after_s >= 1
        assert fleet.sample("shed_total", reason=why) == 1
        assert fleet.sample("queue_requests", band="normal") == 0

    run(test, QueueLimits(max_wait_s=0.05))


def test_who_is_pushed_out_hears_of_it_at_once() -> None:
    async def test(fleet: Fleet) -> None:
        greedy = [await fleet.wait(fleet.asked("greedy")) for _ in range(3)]
        others = [await fleet.wait(fleet.asked(tenant)) for tenant in "bc"]
        with pytest.raises(QueueShed) as raised:
            await asyncio.wait_for(greedy[2], 5)
        assert raised.value.why == "full"
        assert not any(task.done() for task in (*greedy[:2], *others))

    run(test, QueueLimits(bounds=QueueBounds(num_requests=4)))


def test_a_tenant_that_has_its_part_of_the_queue_is_told_so() -> None:
    async def test(fleet: Fleet) -> None:
        for _ in range(3):
            await fleet.wait(fleet.asked())
        with pytest.raises(QueueShed) as raised:
            await fleet.serve(fleet.asked())
        assert raised.value.why == "share"

    run(test, QueueLimits(bounds=QueueBounds(num_requests=4)))


def test_who_was_placed_and_then_refused_is_first_again_and_has_not_paid() -> None:
    async def test(fleet: Fleet) -> None:
        first, second = fleet.asked(), fleet.asked()
        await fleet.wait(first)
        waiting = await fleet.wait(second)
        await fleet.free()
        await soon(lambda: fleet.placed == [first])
        again = await fleet.wait(first)
        assert fleet.room.num_tokens == 200
        await fleet.free()
        await asyncio.wait_for(again, 5)
        assert fleet.placed == [first, first] and not waiting.done()

    run(test)


def test_who_lost_its_worker_waits_before_everybody_and_is_not_sent_away() -> None:
    async def test(fleet: Fleet) -> None:
        for priority in (-5, -5, -5, 0):
            await fleet.wait(fleet.asked("greedy", priority=priority))
        resumed = fleet.room.resumed(fleet.asked("greedy"))
        task = await fleet.wait(resumed)
        await soon(lambda: all(one.done() for one in fleet.tasks if one is not task))
        assert not task.done()
        await fleet.free()
        await asyncio.wait_for(task, 5)
        assert fleet.placed == [resumed]

    limits = QueueLimits(bounds=QueueBounds(num_requests=4, num_tokens=10**9), max_wait_s=0.05)
    run(test, limits)


def test_once_the_rate_is_known_a_wait_that_is_too_long_is_foretold() -> None:
    now = 0.0
    metrics = RouterMetrics()
    room = WaitingRoom(limits=QueueLimits(max_wait_s=10.0), metrics=metrics, clock=lambda: now)

    def asked(ends_in_s: float = 60.0) -> QueuedRequest:
        return room.expected(
            tenant="a", weight=1.0, priority=0, num_prompt_tokens=100, max_tokens=0,
            ends_at=now + ends_in_s,
        )  # fmt: skip

    async def test() -> None:
        nonlocal now
        waiting = [asked() for _ in range(29)]
        tasks = [
            asyncio.create_task(room.wait_turn(one, pause_s=0.0), name="request") for one in waiting
        ]
        await asyncio.sleep(0)
        for request in waiting[:9]:  # 100 tokens a second
            now += 1.0
            room.leave(request, is_placed=True)
        tasks.append(asyncio.create_task(room.wait_turn(asked(), pause_s=0.0), name="short"))
        for ends_in_s, why in ((60.0, "wait"), (5.0, "deadline")):
            with pytest.raises(QueueShed) as raised:
                await room.wait_turn(asked(ends_in_s), pause_s=0.0)
            assert raised.value.why == why
            assert 9 <= raised.value.retry_after_s <= 22
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(test())
