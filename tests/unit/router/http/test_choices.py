import asyncio
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.api import Bench
from support.eventually import soon

from protocol.ids import RequestId
from protocol.messages import Sampling, Token
from router.admission.shed import QueueShed
from router.api.errors import ApiError
from router.api.generation import Generation
from router.http.answer import AnswerWriter
from router.http.choices import answer_choices
from router.models.model_text import ChosenModel
from router.requests.events import Ended, GenerationRequest, NoWorkers, Route
from router.requests.token_listener import TokenListener

pytestmark = pytest.mark.anyio
NOBODYS = cast(ChosenModel, None)
"""Nothing here looks at it."""


def generation(num: int, *, max_tokens: int = 50, max_at_once: int | None = None) -> Generation:
    sampling = Sampling(seed=1, max_tokens=max_tokens)
    one = GenerationRequest(
        id=RequestId("r"), token_ids=(5,), sampling=sampling, salt="", deadline_s=60
    )
    return Generation(
        kind="chat", id="chatcmpl-1", created=0, chosen=NOBODYS, stream=True, include_usage=False,
        continuous_usage=False, n=num, prompt_tokens=1, echoes=("",) * num, max_at_once=max_at_once,
        requests=tuple(replace(one, id=RequestId(f"r.{index}")) for index in range(num)),
    )  # fmt: skip


class Kept(AnswerWriter):
    """Keeps what it is told, and leaves after so many things."""

    def __init__(self, generation: Generation, *, leave_after: int | None = None) -> None:
        self.told: list[tuple[int, Route | Token | Ended]] = []
        self._leave_after = leave_after
        self._num = len(generation.requests)

    def choice(self, index: int) -> TokenListener:
        listener = super().choice(index)
        listener.placed = lambda route: self._keep(index, route)  # type: ignore[method-assign]
        return listener

    def token(self, index: int, token: Token) -> None:
        self._keep(index, token)

    async def ended(self, index: int, ended: Ended) -> None:
        self._keep(index, ended)

    async def finish(self) -> None:
        raise AssertionError

    async def fail(self, error: ApiError) -> None:
        raise AssertionError

    def of(self, index: int) -> list[Route | Token | Ended]:
        return [told for choice, told in self.told if choice == index]

    def _keep(self, index: int, told: Route | Token | Ended) -> None:
        self.told.append((index, told))
        if self._leave_after is not None and len(self.told) > self._leave_after:
            raise Left


class Begun(Kept):
    """Its client has something already."""

    is_begun = True


class Left(Exception):
    pass


@pytest.mark.parametrize("num", [1, 3])
async def test_every_choice_is_told_in_order_and_ends(bench: Bench, num: int) -> None:
    asked = generation(num)
    answer = Kept(asked)
    await answer_choices(bench.dispatcher, asked, answer)
    for index in range(num):
        mine = answer.of(index)
        assert isinstance(mine[0], Route) and isinstance(mine[-1], Ended)
        tokens = [told for told in mine if isinstance(told, Token)]
        assert [token.index for token in tokens] == list(range(len(mine) - 2))
    assert bench.dispatcher.num_active == bench.dispatcher.num_aborted == 0


@pytest.mark.parametrize("num", [1, 3])
async def test_leaving_early_aborts_what_still_runs(bench: Bench, num: int) -> None:
    bench.dispatcher.hold_at = 2
    asked = generation(num)
    async with asyncio.TaskGroup() as tasks:
        running = answer_choices(bench.dispatcher, asked, Kept(asked))
        task = tasks.create_task(running, name="choices")
        await soon(lambda: bench.dispatcher.num_made == 2 * num)
        task.cancel()
    assert bench.dispatcher.num_active == 0
    assert bench.dispatcher.num_aborted == num


async def test_the_failure_of_one_is_raised_and_the_others_are_aborted(bench: Bench) -> None:
    bench.dispatcher.failures[3] = NoWorkers("gone")
    bench.dispatcher.num_failures_left = 1
    asked = generation(3)
    with pytest.raises(NoWorkers):
        await answer_choices(bench.dispatcher, asked, Kept(asked))
    assert bench.dispatcher.num_active == 0


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_choice_is_sent_away_only_before_the_first_byte(
    bench: Bench, is_begun: bool
) -> None:
    shed = QueueShed("full", why="full", retry_after_s=0.0)
    bench.dispatcher.failures[-1] = shed
    bench.dispatcher.num_failures_left = 2
    asked = generation(1)
    answer = Begun(asked) if is_begun else Kept(asked)
    with nullcontext() if is_begun else pytest.raises(QueueShed):
        await answer_choices(bench.dispatcher, asked, answer)
    assert bench.dispatcher.num_failures_left == (0 if is_begun else 1)
    assert any(isinstance(told, Ended) for told in answer.of(0)) is is_begun


async def test_no_choice_waits_anew_beyond_its_deadline(bench: Bench) -> None:
    bench.dispatcher.failures[-1] = QueueShed("full", why="full", retry_after_s=60.0)
    asked = generation(1)
    with pytest.raises(QueueShed):
        await answer_choices(bench.dispatcher, asked, Begun(asked))


async def test_no_more_run_at_once_than_may(bench: Bench) -> None:
    asked = generation(5, max_at_once=2)
    await answer_choices(bench.dispatcher, asked, Kept(asked))
    assert bench.dispatcher.most_active == 2


@given(
    leave_after=st.integers(0, 40), fail_at=st.none() | st.integers(-1, 10), num=st.integers(1, 4)
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_runs_on_after_any_way_out(
    bench: Bench, leave_after: int, fail_at: int | None, num: int
) -> None:
    async def leave() -> None:
        asked = generation(num)
        with suppress(NoWorkers, Left):
            await answer_choices(bench.dispatcher, asked, Kept(asked, leave_after=leave_after))

    bench.dispatcher.failures = {} if fail_at is None else {fail_at: NoWorkers("gone")}
    asyncio.run(asyncio.wait_for(leave(), timeout=20))
    assert bench.dispatcher.num_active == 0
