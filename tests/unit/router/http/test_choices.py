import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.api import Bench
from support.eventually import soon
from support.fake_dispatcher import ROUTE

from protocol.ids import RequestId
from protocol.messages import Sampling
from router.http.choices import EVENTS_PER_CHOICE, open_choices
from router.requests.events import (
    Ended,
    GenerationEvent,
    GenerationRequest,
    NoWorkers,
    Placed,
    Token,
)

pytestmark = pytest.mark.anyio


def requests(num: int, *, max_tokens: int = 50) -> list[GenerationRequest]:
    sampling = Sampling(seed=1, max_tokens=max_tokens)
    one = GenerationRequest(
        id=RequestId("r"), token_ids=(5,), sampling=sampling, salt="", deadline_s=60
    )
    return [replace(one, id=RequestId(f"r.{index}")) for index in range(num)]


@pytest.mark.parametrize("num", [1, 3])
async def test_every_choice_has_all_its_events_in_order(bench: Bench, num: int) -> None:
    seen: list[list[object]] = [[] for _ in range(num)]
    async with (
        asyncio.TaskGroup() as tasks,
        open_choices(bench.dispatcher, requests(num), tasks=tasks) as events,
    ):
        async for index, event in events:
            seen[index].append(event)
    for mine in seen:
        assert isinstance(mine[0], Placed) and isinstance(mine[-1], Ended)
        tokens = [event for event in mine if isinstance(event, Token)]
        assert [token.index for token in tokens] == list(range(len(mine) - 2))
    assert bench.dispatcher.num_active == bench.dispatcher.num_aborted == 0


@pytest.mark.parametrize("num", [1, 3])
async def test_leaving_early_aborts_what_still_runs(bench: Bench, num: int) -> None:
    bench.dispatcher.hold_at = 2
    async with asyncio.TaskGroup() as tasks:
        async with open_choices(bench.dispatcher, requests(num), tasks=tasks) as events:
            await anext(events)
        await soon(lambda: bench.dispatcher.num_active == 0)
    assert bench.dispatcher.num_aborted == num


async def test_the_failure_of_one_is_raised_and_the_others_are_aborted(bench: Bench) -> None:
    bench.dispatcher.failures[3] = NoWorkers("gone")
    bench.dispatcher.num_failures_left = 1
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(NoWorkers):
            async with open_choices(bench.dispatcher, requests(3), tasks=tasks) as events:
                async for _ in events:
                    pass
    assert bench.dispatcher.num_active == 0


@pytest.mark.parametrize("num", [1, 2])
async def test_silence_is_never_an_ending(num: int) -> None:
    class Mute:
        async def generate(
            self, request: GenerationRequest
        ) -> AsyncGenerator[GenerationEvent, None]:
            yield Placed(route=ROUTE)

    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(AssertionError, match="has no ending"):
            async with open_choices(Mute(), requests(num), tasks=tasks) as events:
                async for _ in events:
                    pass


async def test_choices_wait_for_a_client_that_lags(bench: Bench) -> None:
    bench.dispatcher.reply = "x" * 500
    made: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        many = requests(2, max_tokens=200)
        async with open_choices(bench.dispatcher, many, tasks=tasks) as events:
            await anext(events)
            for _ in range(1000):  # turns of the loop, in which the choices run on
                await asyncio.sleep(0)
            made.append(bench.dispatcher.num_made)
    assert made[0] <= 2 * (EVENTS_PER_CHOICE + 2)


@given(
    leave_after=st.integers(0, 40), fail_at=st.none() | st.integers(-1, 10), num=st.integers(1, 4)
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_runs_on_after_any_way_out(
    bench: Bench, leave_after: int, fail_at: int | None, num: int
) -> None:
    async def leave() -> None:
        async with asyncio.TaskGroup() as tasks:
            with suppress(NoWorkers):
                async with open_choices(bench.dispatcher, requests(num), tasks=tasks) as events:
                    left = leave_after
                    async for _ in events:
                        left -= 1
                        if left < 0:
                            break

    bench.dispatcher.failures = {} if fail_at is None else {fail_at: NoWorkers("gone")}
    asyncio.run(asyncio.wait_for(leave(), timeout=20))
    assert bench.dispatcher.num_active == 0
