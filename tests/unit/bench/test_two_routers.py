"""What keeps two routers from choosing one worker: each hears soon what the other has placed."""

import asyncio
from functools import partial

import pytest
from support.eventually import soon

from bench.two_routers import Placed, Router, fleet
from protocol.ids import WorkerId
from worker import lifecycle

NUM_WORKERS = 6


async def places(*, num_requests: int) -> list[WorkerId]:
    """Where requests go that two routers place by turns, each once the other's last is known."""
    found: list[WorkerId] = []
    async with (
        fleet(num_routers=2, num_workers=NUM_WORKERS, service_s=None) as (routers, services),
        asyncio.TaskGroup() as tasks,
    ):
        asked = []

        def is_known_to(router: Router, name: WorkerId) -> bool:
            beat = router.registry.known_worker(name).beat
            held = len(services[name].held)
            return beat is not None and beat.load.running + beat.load.waiting == held

        def has_come(number: int) -> bool:
            return sum(len(service.held) for service in services.values()) > number

        for number in range(num_requests):
            router = routers[number % 2]
            before = {name: len(service.held) for name, service in services.items()}
            asking = router.dispatcher.generate(router.request(number), Placed())
            asked.append(tasks.create_task(asking, name=f"request {number}"))
            await soon(partial(has_come, number))
            (name,) = (name for name in services if len(services[name].held) > before[name])
            found.append(name)
            await soon(partial(is_known_to, routers[(number + 1) % 2], name))
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
