"""Whom a worker waits for before it is ready, and for how long."""

import asyncio

import pytest
from support.eventually import soon

from protocol.codec import WIRE_VERSION
from protocol.errors import StoreError
from protocol.ids import RouterId
from protocol.process.health import Health
from protocol.store.workers import RouterRecord
from worker.reported.greetings import ONE_IS_ENOUGH_S, WITHOUT_REDIS_S, Greetings, waits_for

A, B = (RouterRecord(router=RouterId(name), wires=(WIRE_VERSION,)) for name in "ab")
NEWER = RouterRecord(router=RouterId("n"), wires=(WIRE_VERSION + 2, WIRE_VERSION + 1))


@pytest.mark.parametrize(
    ("registered", "met", "waited_s", "why"),
    [
        ((), "", 0.0, None),
        ((A, B), "ab", 0.0, None),
        ((A,), "ab", 0.0, None),
        ((A, B), "a", 0.0, "b has not met it"),
        ((A, B), "", 1e9, "a has not met it; b has not met it"),
        ((A, B), "c", 1e9, "a has not met it; b has not met it"),
        ((A, B), "b", ONE_IS_ENOUGH_S - 0.1, "a has not met it"),
        (None, "", WITHOUT_REDIS_S - 0.1, "no router has met it, Redis is away"),
        (
            (NEWER,), "", 1e9,
            f"n speaks wire {WIRE_VERSION + 1} and {WIRE_VERSION + 2}, this worker {WIRE_VERSION}",
        ),
    ],
)  # fmt: skip
def test_all_registered_routers_are_waited_for_and_none_besides(
    registered: tuple[RouterRecord, ...] | None, met: str, waited_s: float, why: str | None
) -> None:
    waiting = waits_for(registered, set(map(RouterId, met)), waited_s=waited_s)
    assert (None if waiting is None else waiting.why) == why
    assert waiting is None or not waiting.is_over


@pytest.mark.parametrize(
    ("registered", "met", "waited_s"),
    [
        ((A, B), "a", ONE_IS_ENOUGH_S),
        ((A, NEWER), "a", ONE_IS_ENOUGH_S),
        (None, "a", 0.0),
        (None, "", WITHOUT_REDIS_S),
    ],
)
def test_after_a_while_one_greeting_is_enough_and_without_redis_any(
    registered: tuple[RouterRecord, ...] | None, met: str, waited_s: float
) -> None:
    waiting = waits_for(registered, set(map(RouterId, met)), waited_s=waited_s)
    assert waiting is not None and waiting.is_over


class Registered:
    """The part of a membership that says who there is."""

    def __init__(self, *routers: RouterRecord) -> None:
        self.routers: tuple[RouterRecord, ...] | None = routers

    async def list_routers(self) -> tuple[RouterRecord, ...]:
        if self.routers is None:
            raise StoreError("Redis: away")
        return self.routers


def test_readiness_says_who_is_missing_and_waits_for_nobody_once_all_have_come() -> None:
    async def test() -> None:
        health, met, registered = Health(), set[RouterId](), Registered(A, B)
        greetings = Greetings(membership=registered, health=health, met=lambda: met)
        health.note("ready")
        assert health.not_ready() == "it is not registered yet"
        running = asyncio.create_task(greetings.run(), name="greetings")
        await soon(lambda: health.not_ready() == "a has not met it; b has not met it")
        assert health.not_alive() is None
        met.add(A.router)
        await soon(lambda: health.not_ready() == "b has not met it")
        registered.routers = (A,)
        await asyncio.wait_for(running, 10)
        assert health.not_ready() is None

    asyncio.run(test())


def test_who_is_met_by_one_of_two_says_which_is_missing_when_it_waits_no_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        now = 0.0
        health, registered = Health(), Registered(A, B)
        greetings = Greetings(
            membership=registered, health=health, met=lambda: {A.router}, clock=lambda: now
        )
        health.note("ready")
        running = asyncio.create_task(greetings.run(), name="greetings")
        await soon(lambda: health.not_ready() == "b has not met it")
        now = ONE_IS_ENOUGH_S
        await asyncio.wait_for(running, 10)
        assert health.not_ready() is None

    asyncio.run(test())
    (told,) = [one for one in caplog.records if one.message == "ready without all routers"]
    assert told.__dict__["why"] == "b has not met it"
