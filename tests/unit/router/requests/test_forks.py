"""Choices of one prompt against fake workers: the first is placed, the others go on from it."""

import asyncio

import pytest
from support.dispatching import ONCE, SOON_AGAIN, count, run
from support.eventually import soon
from support.fake_cluster import (
    APART,
    FakeCluster,
    Heard,
    collect,
    fake_cluster,
    request,
    tokens_of,
)
from support.fake_worker import Act, expected

from protocol.ids import WorkerId
from protocol.messages import Decode, OfAttempt, Prefill
from protocol.readings import ScorePrompt
from router.admission.fair_queue import QueueBounds
from router.admission.shed import QueueShed
from router.admission.waiting_room import QueueLimits
from router.failover.stall import StallLimits
from router.placement.place import DEFAULT_RULES, Placement, PlacementRefusal, PlacementRules
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.dispatch import DispatchLimits
from router.requests.events import Ended, GenerationRequest, Route
from router.requests.family import ForkFamily


def choices(num: int, *, max_tokens: int = 12) -> list[GenerationRequest]:
    family = ForkFamily()
    return [
        request(name=f"r.{i}", family=family, is_first=not i, max_tokens=max_tokens)
        for i in range(num)
    ]


async def answer(cluster: FakeCluster, asked: list[GenerationRequest]) -> list[Heard]:
    """Each choice has the tokens that it would have alone."""
    heard = [Heard() for _ in asked]
    async with asyncio.TaskGroup() as tasks:
        for one, listener in zip(asked, heard, strict=True):
            tasks.create_task(collect(cluster, one, listener), name=one.id)
    for one, listener in zip(asked, heard, strict=True):
        assert tokens_of(listener.told) == expected(one.token_ids, one.sampling)
    await cluster.until_idle()
    return heard


def decodes(cluster: FakeCluster, name: str = "decode-0") -> list[Decode]:
    return [one for one in cluster.workers[name].seen if isinstance(one, Decode)]


def prefills(cluster: FakeCluster) -> list[Prefill]:
    seen = [one for worker in cluster.workers.values() for one in worker.seen]
    return [one for one in seen if isinstance(one, Prefill)]


def test_one_choice_is_prefilled_and_the_others_fork_it_where_it_decodes() -> None:
    async def test() -> None:
        async with fake_cluster(prefill=2, decode=3) as cluster:
            heard = await answer(cluster, choices(4))
            assert len(prefills(cluster)) == 1
            (first,) = (one for one in decodes(cluster) if one.ticket is not None)
            forks = [one for one in decodes(cluster) if one.ticket is None]
            origin = OfAttempt(request=first.request, attempt=1)
            assert [one.fork_of for one in forks] == [origin] * 3
            for listener in heard[1:]:
                route = listener.told[0]
                assert isinstance(route, Route)
                expected_reason = "decode-0; forked from the first choice; uncached 1 of 40 tokens"
                assert route.reason == expected_reason
            assert count(cluster, "baton_routes_total", kind="forked", reason="first") == 3

    run(test)


def test_where_decode_works_alone_the_first_choice_is_forked_as_well() -> None:
    async def test() -> None:
        async with fake_cluster(decode=2) as cluster:
            await answer(cluster, choices(3))
            assert [one.fork_of is not None for one in decodes(cluster)] == [False, True, True]

    run(test)


def test_forks_wait_until_the_decode_worker_was_told_of_the_first() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("hang", 0)]}
        async with fake_cluster(prefill=1, decode=1, plans=plans) as cluster:
            async with asyncio.TaskGroup() as tasks:
                served = tasks.create_task(answer(cluster, choices(3)), name="choices")
                await soon(lambda: len(prefills(cluster)) == 1)
                assert not decodes(cluster)
                cluster.workers["prefill-0"].resumed.set()
                await served
            assert decodes(cluster)[0].fork_of is None

    run(test)


@pytest.mark.parametrize("point", [0, 1])
def test_when_the_firsts_prefill_worker_dies_all_choices_are_answered(point: int) -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("die", point)]}
        async with fake_cluster(prefill=2, decode=2, plans=plans, limits=SOON_AGAIN) as cluster:
            await answer(cluster, choices(4))

    run(test)


@pytest.mark.parametrize("point", [0, 1, 5])
def test_when_their_decode_worker_dies_all_choices_go_on_elsewhere(point: int) -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("die", point)]}
        async with fake_cluster(prefill=1, decode=2, plans=plans, limits=SOON_AGAIN) as cluster:
            await answer(cluster, choices(4))

    run(test)


def test_a_fork_that_is_refused_is_placed_like_any_other() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 3), Act("refuse")]}
        async with fake_cluster(decode=2, plans=plans, limits=SOON_AGAIN) as cluster:
            async with asyncio.TaskGroup() as tasks:
                served = tasks.create_task(answer(cluster, choices(2)), name="choices")
                await soon(lambda: bool(decodes(cluster, "decode-1")))
                cluster.workers["decode-0"].resumed.set()
                await served
            assert [one.fork_of for one in decodes(cluster, "decode-1")] == [None]

    run(test)


def test_when_the_first_choice_has_ended_the_others_are_placed_like_any_other() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            first, second = choices(2, max_tokens=1)
            await collect(cluster, first)
            told = await collect(cluster, second)
            assert isinstance(told[-1], Ended)
            assert [one.fork_of for one in decodes(cluster)] == [None, None]

    run(test)


def test_when_the_first_choices_client_leaves_early_the_others_do_not_wait_for_it() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("hang", 0)]}
        async with fake_cluster(prefill=1, decode=1, plans=plans, limits=ONCE) as cluster:
            first, second = choices(2)
            async with asyncio.TaskGroup() as tasks:
                leaves = tasks.create_task(collect(cluster, first), name="leaves")
                await soon(lambda: len(prefills(cluster)) == 1)
                stays = tasks.create_task(collect(cluster, second), name="stays")
                await asyncio.sleep(0)
                leaves.cancel()
                assert tokens_of(await stays) == expected(second.token_ids, second.sampling)
            await cluster.until_idle()

    run(test)


def test_a_fork_is_not_blamed_on_its_worker_while_the_first_choice_is_prefilled() -> None:
    """Both wait for the prefill worker, and only that one is told so."""

    async def test() -> None:
        plans = {"prefill-0": [Act("hang", 1)], "decode-0": [Act("hang", 9), Act("hang", 0)]}
        async with (
            fake_cluster(prefill=1, decode=1, plans=plans) as cluster,
            asyncio.TaskGroup() as tasks,
        ):
            served = tasks.create_task(answer(cluster, choices(2)), name="choices")
            await soon(lambda: len(decodes(cluster)) == 2)
            first, fork = cluster.dispatcher.open_requests()
            assert first.silent_since < fork.silent_since == float("inf")
            for worker in cluster.workers.values():
                worker.resumed.set()
            await served

    run(test)


def test_a_fork_is_watched_alone_once_the_first_choice_has_left() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("hang", 0)], "decode-0": [Act("hang", 0), Act("hang", 0)]}
        limits = DispatchLimits(stalls=StallLimits(first_token_s=0.5))
        async with fake_cluster(prefill=1, decode=1, plans=plans, limits=limits) as cluster:
            first, second = choices(2)
            async with asyncio.TaskGroup() as tasks:
                leaves = tasks.create_task(collect(cluster, first), name="leaves")
                stays = tasks.create_task(collect(cluster, second), name="stays")
                await soon(lambda: len(decodes(cluster)) == 2)
                _, fork = cluster.dispatcher.open_requests()
                assert fork.silent_since == float("inf")
                leaves.cancel()
                await soon(lambda: fork.silent_since < float("inf"))
                for worker in cluster.workers.values():
                    worker.resumed.set()
                await stays

    run(test)


@pytest.mark.parametrize("rules", [DEFAULT_RULES, APART], ids=["alone", "prefilled apart"])
def test_choices_for_which_there_is_no_room_are_sent_away_before_the_first_is_answered(
    rules: PlacementRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for the first one's prompt on seats, of which a worker has three here."""

    async def test() -> None:
        place = Candidates.place_request

        def place_request(
            candidates: Candidates, context: RequestContext, *, now: float
        ) -> Placement | PlacementRefusal:
            fleet = cluster.registry.fleet
            if fleet.rows["running"][fleet.slot_of(WorkerId("decode-0"))] >= 3:
                return PlacementRefusal(why="saturated", reason="three are there")
            return place(candidates, context, now=now)

        monkeypatch.setattr(Candidates, "place_request", place_request)
        queue = QueueLimits(bounds=QueueBounds(num_requests=2))
        limits = DispatchLimits(queue=queue, rules=rules)
        plans = {name: [Act("hang", 0)] * 4 for name in ("prefill-0", "decode-0")}
        async with fake_cluster(prefill=1, decode=1, plans=plans, limits=limits) as cluster:
            heard, outcomes = [Heard() for _ in range(6)], list[BaseException | None]()

            async def one(choice: GenerationRequest, listener: Heard) -> None:
                try:
                    await collect(cluster, choice, listener)
                except QueueShed as error:
                    outcomes.append(error)

            async with asyncio.TaskGroup() as tasks:
                for choice, listener in zip(choices(6), heard, strict=True):
                    tasks.create_task(one(choice, listener), name=choice.id)
                await soon(lambda: len(outcomes) == 2)
                assert not any(listener.tokens for listener in heard)
                for worker in cluster.workers.values():
                    worker.resumed.set()
            assert len(outcomes) == 2
            await cluster.until_idle()

    run(test)


def test_a_choice_whose_prompt_is_read_is_no_fork() -> None:
    """`prepare` gives it no family; an equal prompt finds the blocks all the same."""

    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            read = request(reading=ScorePrompt(), name="r.1")
            assert read.family is None
            await collect(cluster, read)
            assert [one.fork_of for one in decodes(cluster)] == [None]

    run(test)
