"""Requests whose workers stall, die or refuse again and again: fake workers over real sockets."""

import asyncio
import time

import pytest
from support.dispatching import (
    IMPATIENT,
    ONCE,
    SOON_AGAIN,
    answers,
    client_of,
    count,
    run,
)
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
from support.fake_worker import DEADLY, Act, FakeWorker, expected

from router.failover.retry_budget import MIN_RETRIES
from router.failover.stalled_workers import MIN_STALLS
from router.requests.dispatch import DispatchLimits
from router.requests.events import (
    NoWorkers,
    PoisonRequest,
    RequestFailed,
    RetriesSpent,
)


@pytest.mark.parametrize(("point", "awaited"), [(0, "first_token"), (4, "next_token")])
def test_a_request_moves_on_from_a_worker_that_owes_it_a_token_for_too_long(
    point: int, awaited: str
) -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", point)]}
        async with fake_cluster(decode=2, plans=plans, limits=IMPATIENT) as cluster:
            ended = await answers(cluster)
            first, second = ended.trace.attempts
            assert (first.decode, first.stalled, first.num_tokens) == ("decode-0", awaited, point)
            assert (second.decode, second.stalled) == ("decode-1", None)
            assert (ended.trace.num_stalled, ended.trace.num_retries) == (1, 1)
            assert count(cluster, "baton_router_stalled_total", what=awaited) == 1
            assert count(cluster, "baton_retries_total", why="stalled") == 1
            await soon(lambda: bool(cluster.workers["decode-0"].aborted))

    run(test)


def test_a_prefill_worker_that_stalls_is_left_too() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("hang", 1)]}
        async with fake_cluster(prefill=2, decode=1, plans=plans, limits=IMPATIENT) as cluster:
            ended = await answers(cluster)
            assert [one.prefill for one in ended.trace.attempts] == ["prefill-0", "prefill-1"]

    run(test)


def test_where_there_is_nobody_else_a_stalled_worker_is_waited_for() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 2)]}
        async with fake_cluster(decode=1, plans=plans, limits=IMPATIENT) as cluster:
            asked, heard = request(deadline_s=2.0), Heard()
            with pytest.raises(RequestFailed, match="not finished within 2 s"):
                await collect(cluster, asked, heard)
            assert len(heard.tokens) == 2
            assert len(cluster.find_traces(asked.id)[0].attempts) == 1

    run(test)


def test_new_requests_avoid_a_worker_where_several_stalled() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 0)] * 99}
        async with fake_cluster(decode=2, plans=plans, limits=IMPATIENT) as cluster:
            async with asyncio.TaskGroup() as tasks:
                for number in range(12):
                    asked = request(name=f"r{number}", prompt=(number, 7, 8))
                    tasks.create_task(collect(cluster, asked), name=asked.id)
            num_given = len(cluster.workers["decode-0"].seen)
            assert num_given >= MIN_STALLS
            for _ in range(3):
                ended = await answers(cluster)
                assert [one.decode for one in ended.trace.attempts] == ["decode-1"]
            assert len(cluster.workers["decode-0"].seen) == num_given

    run(test)


def test_an_attempt_that_is_given_up_twice_is_lost_once() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 4)]}
        async with fake_cluster(decode=2, plans=plans) as cluster:
            asked, heard = request(), Heard()
            async with client_of(cluster, asked, heard) as answer:
                await soon(lambda: len(heard.tokens) == 4)
                (opened,) = cluster.dispatcher.open_requests()
                wait = opened.find_wait()
                assert wait is not None and wait.worker == "decode-0" and wait.is_streaming
                opened.stall("no token", wait, now=time.monotonic())
                opened.stall("told twice", wait, now=time.monotonic())
                assert opened.find_wait() is None
                events = await answer
            assert tokens_of(events) == expected(asked.token_ids, asked.sampling)
            first, second = cluster.find_traces(asked.id)[0].attempts
            assert (first.outcome, second.decode) == ("no token", "decode-1")
            assert count(cluster, "baton_router_stalled_total", what="next_token") == 1

    run(test)


def test_retries_are_bounded_for_all_requests_together() -> None:
    """Every attempt fails: the fleet gets a few more than there are requests, not four times as
    many, and the client is told to come back."""

    async def test() -> None:
        plans = {f"decode-{i}": [Act("fail", 0)] * 999 for i in range(2)}
        limits = DispatchLimits(rules=APART, retry_share=0.1, patience_s=0.2)
        async with fake_cluster(decode=2, plans=plans, limits=limits) as cluster:
            failures: list[type] = []
            for number in range(60):
                with pytest.raises((RequestFailed, RetriesSpent)) as failed:
                    await collect(cluster, request(name=f"r{number}", prompt=(number, 7, 8)))
                failures.append(failed.type)
            num_attempts = sum(len(worker.seen) for worker in cluster.workers.values())
            assert failures[0] is RequestFailed and failures[-1] is RetriesSpent
            assert num_attempts < 60 * 2
            spent = count(cluster, "baton_router_retries_spent_total")
            assert spent == failures.count(RetriesSpent)

    run(test)


def test_a_worker_s_loss_is_made_good_for_all_it_had_at_once() -> None:
    async def test() -> None:
        limits = DispatchLimits(rules=APART, retry_share=0.0)
        async with fake_cluster(decode=2, limits=limits) as cluster:
            for worker in cluster.workers.values():
                worker.pace_s = 0.02
            asked = [request(name=f"r{n}", prompt=(n, 7, 8), max_tokens=30) for n in range(60)]
            heard = [Heard() for _ in asked]
            async with asyncio.TaskGroup() as tasks:
                served = [
                    tasks.create_task(collect(cluster, one, told), name=one.id)
                    for one, told in zip(asked, heard, strict=True)
                ]
                await soon(lambda: all(told.tokens for told in heard))
                cluster.workers["decode-0"].die()
            for one, events in zip(asked, served, strict=True):
                assert tokens_of(events.result()) == expected(one.token_ids, one.sampling)
            num_retries = [cluster.find_traces(one.id)[0].num_retries for one in asked]
            assert sum(num_retries) > MIN_RETRIES

    run(test)


def test_the_record_says_what_was_predicted_what_came_of_it_and_why_it_was_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("refuse"), Act("die", 3)]}
        async with fake_cluster(prefill=1, decode=2, plans=plans, limits=SOON_AGAIN) as cluster:
            cluster.workers["decode-1"].plan.append(Act("refuse"))
            with caplog.at_level("INFO", logger="baton.dispatch"):
                ended = await answers(cluster)
            trace = ended.trace
            assert (trace.num_refused, trace.num_retries, trace.num_stalled) == (2, 1, 0)
            assert trace.waited_s > 0 and trace.total_s > trace.first_token_s > 0
            assert trace.bytes_moved == sum(one.bytes_moved for one in trace.attempts) > 0
            first, last = trace.attempts[0], trace.attempts[-1]
            assert first.predicted is not None and first.predicted.num_uncached_tokens == 40
            assert first.predicted.first_token_s > 0 and first.first_token_s > 0
            assert sum(one.num_tokens for one in trace.attempts) == trace.output_tokens == 12
            assert last.sent_s > first.sent_s >= 0
            (line,) = (vars(one) for one in caplog.records if one.getMessage() == "request")
            assert (line["outcome"], line["num_retries"], line["decode"]) == (
                "length",
                1,
                last.decode,
            )
            assert line["why"] == last.reason and line["bytes_moved"] == trace.bytes_moved

    run(test)


def test_attempts_are_bounded_and_the_error_has_every_reason() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("fail", 1)] * 9}
        async with fake_cluster(decode=1, plans=plans) as cluster:
            with pytest.raises(RequestFailed, match=r"4 attempts were lost.*told to fail"):
                await collect(cluster, request())
            await cluster.until_idle()

    run(test)


def test_who_ends_worker_after_worker_ends_after_the_second_and_its_neighbours_go_on() -> None:
    async def test() -> None:
        async with fake_cluster(decode=3) as cluster:
            bad = request(name="bad", prompt=(DEADLY, 5, 6))
            neighbours = [request(name=f"n{i}", prompt=(i, 7, 8), max_tokens=30) for i in range(4)]
            async with asyncio.TaskGroup() as tasks:
                served = [tasks.create_task(collect(cluster, one), name="n") for one in neighbours]
                with pytest.raises(PoisonRequest, match="2 workers were lost"):
                    await collect(cluster, bad)
            for asked, events in zip(neighbours, served, strict=True):
                assert tokens_of(events.result()) == expected(asked.token_ids, asked.sampling)
            assert sum(w.dead.is_set() for w in cluster.workers.values()) == 2

            cluster.add(FakeWorker("decode-3", "decode", cluster.fabric))
            await cluster.until_ready()
            with pytest.raises(PoisonRequest):
                await collect(cluster, request(name="again", prompt=bad.token_ids))
            assert sum(w.dead.is_set() for w in cluster.workers.values()) == 3
            await answers(cluster)

    run(test)


def test_of_many_copies_of_a_request_that_ends_workers_few_are_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the choices of one request: both workers are lost with all of them, then two alone."""

    async def ends(cluster: FakeCluster, name: str) -> None:
        with pytest.raises(PoisonRequest):
            await collect(cluster, request(name=name, prompt=(DEADLY, 5, 6)))

    async def test() -> None:
        async with fake_cluster(decode=2, supervised=True) as cluster:
            async with asyncio.TaskGroup() as tasks:
                for i in range(12):
                    tasks.create_task(ends(cluster, f"c{i}"), name=f"c{i}")
            await soon(lambda: len(cluster.registry.ready_workers()) == 2)
            await answers(cluster)

    run(test)
    assert 3 <= caplog.messages.count("worker gone") <= 6


def test_a_worker_that_says_it_is_broken_is_lost_with_all_it_had() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("break", 0)]}
        async with fake_cluster(decode=2, plans=plans) as cluster:
            ended = await answers(cluster)
            first, second = ended.trace.attempts
            assert (first.decode, second.decode) == ("decode-0", "decode-1")
            assert "the engine is broken" in first.outcome

    run(test)


def test_a_worker_that_says_anything_at_all_costs_no_request_and_no_other_worker() -> None:
    """Of numbers that fit their types, wherever they stand."""

    async def test() -> None:
        plans = {"decode-0": [Act("babble", i % 3) for i in range(60)]}
        limits = DispatchLimits(max_attempts=99)
        async with fake_cluster(prefill=1, decode=2, plans=plans, limits=limits) as cluster:
            for _ in range(30):
                await answers(cluster)
                cluster.announce()
            assert "decode-1" in [w.id for w in cluster.registry.ready_workers()]

    run(test)


def test_who_comes_just_after_the_last_decode_worker_was_lost_waits_for_its_successor() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1, supervised=False) as cluster:
            cluster.workers["decode-0"].die()
            await soon(lambda: not cluster.registry.ready_workers())
            asked = request()
            answer = asyncio.create_task(collect(cluster, asked), name="client")
            await asyncio.sleep(0)
            cluster.add(FakeWorker("decode-0", "decode", cluster.fabric))
            events = await asyncio.wait_for(answer, 10)
            assert tokens_of(events) == expected(asked.token_ids, asked.sampling)

    run(test)


def test_who_comes_long_after_it_is_refused_at_once_and_who_waited_in_vain_too() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1, limits=ONCE) as cluster:
            cluster.workers["decode-0"].die()
            await soon(lambda: not cluster.registry.ready_workers())
            with pytest.raises(NoWorkers, match="no decode worker"):
                await collect(cluster, request())
            with pytest.raises(NoWorkers, match="no decode worker"):
                await collect(cluster, request(name="later"))

    run(test)
