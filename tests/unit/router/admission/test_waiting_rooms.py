"""Nobody waits behind requests for another model."""

import asyncio

from support.standing import version_of

from protocol.process.metrics import RouterMetrics
from router.admission.queued_request import QueuedRequest
from router.admission.waiting_room import QueueLimits, WaitingRoom
from router.admission.waiting_rooms import MOST_IDLE, WaitingRooms

OLD, NEW = version_of("old"), version_of("new")


def asked(room: WaitingRoom) -> QueuedRequest:
    return room.expected(
        tenant="a", weight=1.0, priority=0, num_prompt_tokens=100, max_tokens=0, ends_at=1e9
    )


def test_a_newcomer_overtakes_those_that_wait_for_another_version() -> None:
    async def test() -> None:
        metrics = RouterMetrics()
        rooms = WaitingRooms(limits=QueueLimits(), metrics=metrics)
        old, new = rooms.room_of(OLD), rooms.room_of(NEW)
        request = asked(old)
        waiting = asyncio.create_task(old.wait_turn(request, pause_s=0.0), name="waits")
        await asyncio.sleep(0)
        assert old.must_wait(asked(old)) and not new.must_wait(asked(new))
        assert metrics.registry.get_sample_value("baton_router_queue_tokens") == 100
        rooms.note_room()
        await asyncio.wait_for(waiting, 10)
        old.leave(request, is_placed=True)
        assert metrics.registry.get_sample_value("baton_router_queue_tokens") == 0

    asyncio.run(test())


def test_rooms_where_somebody_waits_or_runs_are_kept_and_few_others() -> None:
    async def test() -> None:
        rooms = WaitingRooms(limits=QueueLimits(), metrics=RouterMetrics())
        busy = rooms.room_of(OLD)
        request = asked(busy)
        waiting = asyncio.create_task(busy.wait_turn(request, pause_s=None), name="waits")
        await asyncio.sleep(0)
        for number in range(3 * MOST_IDLE):
            rooms.room_of(version_of(str(number)))
        assert len(rooms) == MOST_IDLE + 1
        rooms.note_room()
        await asyncio.wait_for(waiting, 10)
        busy.leave(request, is_placed=True)
        for number in range(MOST_IDLE):
            rooms.room_of(version_of(f"later {number}"))
        assert rooms.room_of(OLD) is busy, "what runs there is to be settled"
        busy.note_ended(request, num_output_tokens=1)
        for number in range(MOST_IDLE):
            rooms.room_of(version_of(f"last {number}"))
        assert rooms.room_of(OLD) is not busy

    asyncio.run(test())
