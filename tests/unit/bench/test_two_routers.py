"""What keeps two routers from choosing one worker: each hears soon what the other has placed."""

import asyncio
from functools import partial

import pytest
from support.eventually import soon

from bench.two_routers import Placed, fleet
from protocol.ids import WorkerId
from worker import lifecycle

NUM_WORKERS = 6


def _is_placed(placed: Placed) -> bool:
    return placed.decode is not None


async def places(*, num_requests: int) -> list[WorkerId]:
    """Where requests go that two routers place by turns, each once the other's last is known."""
    found: list[WorkerId] = []
    async with (
        fleet(num_routers=2, num_workers=NUM_WORKERS, service_s=None) as (routers, services),
        asyncio.TaskGroup() as tasks,
    ):
        asked = []

        def seen_by_all() -> bool:
            known = [one.registry.known_worker(name).beat for one in routers for name in services]
            held = [len(services[name].held) for _ in routers for name in services]
            return [beat.load.running + beat.load.waiting for beat in known if beat] == held

        for number in range(num_requests):
            placed, router = Placed(), routers[number % 2]
            asking = router.dispatcher.generate(router.request(number), placed)
            asked.append(tasks.create_task(asking, name=f"request {number}"))
            await soon(partial(_is_placed, placed))
            assert placed.decode is not None
            found.append(placed.decode)
            await soon(seen_by_all, 20, "both routers know of it")
        for task in asked:
            task.cancel()
    return found


def test_each_hears_soon_what_the_other_placed_and_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No beat comes but the first: it is the reports that say so."""
    monkeypatch.setattr(lifecycle, "BEAT_S", 1e6)

    async def test() -> list[WorkerId]:
        async with asyncio.timeout(60):
            return await places(num_requests=2 * NUM_WORKERS)

    found = asyncio.run(test())
    first, second = found[:NUM_WORKERS], found[NUM_WORKERS:]
    assert len(set(first)) == NUM_WORKERS
    assert len(set(second)) == NUM_WORKERS
