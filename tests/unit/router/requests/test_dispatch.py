"""One request's life, against fake workers over real sockets on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf

import pytest
from support.eventually import soon
from support.fake_cluster import (
    APART,
    FakeCluster,
    Heard,
    Told,
    collect,
    fake_cluster,
    request,
    tokens_of,
)
from support.fake_worker import DEADLY, EOS, Act, FakeWorker, expected, next_token

from protocol.messages import Decode, Token
from router.admission.shed import QueueShed
from router.admission.waiting_room import PRESSING_FACTOR, QueueLimits
from router.failover.retry_budget import MIN_RETRIES
from router.failover.stall import StallLimits
from router.failover.stalled_workers import MIN_STALLS
from router.placement.place import Placement, PlacementRefusal
from router.requests.candidates import Candidates
from router.requests.context import RequestContext
from router.requests.dispatch import DispatchLimits
from router.requests.events import (
    Ended,
    GenerationRequest,
    NoWorkers,
    PoisonRequest,
    RequestFailed,
    RetriesSpent,
    Route,
    SlowClient,
    TooLong,
)

ONCE = DispatchLimits(rules=APART, patience_s=0.2)

SOON_AGAIN = DispatchLimits(rules=APART, full_pause_s=0.01)
IMPATIENT = DispatchLimits(
    rules=APART, stalls=StallLimits(silent_s=5.0, first_token_s=0.3, next_token_s=0.3)
)


def count(cluster: FakeCluster, name: str, **labels: str) -> float:
    return cluster.metrics.registry.get_sample_value(name, labels) or 0.0


def queued(cluster: FakeCluster) -> float:
    name, labels = "baton_router_queue_requests", {"band": "normal"}
    return cluster.metrics.registry.get_sample_value(name, labels) or 0.0


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


@asynccontextmanager
async def client_of(
    cluster: FakeCluster, asked: GenerationRequest, heard: Heard
) -> AsyncIterator[asyncio.Task[list[Told]]]:
    """A client that leaves at the end of the block."""
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(collect(cluster, asked, heard), name="client")
        yield answer
        answer.cancel()


class Killing(Heard):
    """Kills the first decode worker when it is told the token `at`."""

    def __init__(self, cluster: FakeCluster, *, at: int) -> None:
        super().__init__()
        self._cluster, self._at = cluster, at

    def token(self, token: Token) -> None:
        super().token(token)
        if token.index == self._at:
            self._cluster.workers["decode-0"].die()


async def answers(cluster: FakeCluster, **changes: int) -> Ended:
    """Serves one request and checks its tokens; returns how it ended."""
    asked = request(**changes)  # type: ignore[arg-type]
    events = await collect(cluster, asked)
    assert tokens_of(events) == expected(asked.token_ids, asked.sampling)
    await cluster.until_idle()
    ended = events[-1]
    assert isinstance(ended, Ended)
    return ended


def test_hits_are_counted_beside_what_could_have_been_hit() -> None:
    """The worker finds a block of four tokens each time; the second prompt is expected there."""

    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            await answers(cluster)
            await answers(cluster)

            def tokens(kind: str) -> float | None:
                name = "baton_router_prefix_tokens_total"
                return cluster.metrics.registry.get_sample_value(name, {"kind": kind})

            assert (tokens("prompt"), tokens("hit")) == (80, 8)
            assert (tokens("predicted"), tokens("held_anywhere"), tokens("seen")) == (36, 36, 36)

    run(test)


def test_a_prompt_is_prefilled_in_one_worker_and_decoded_in_another() -> None:
    async def test() -> None:
        async with fake_cluster(prefill=2, decode=2) as cluster:
            ended = await answers(cluster)

            (attempt,) = ended.trace.attempts
            assert (attempt.prefill, attempt.decode) == ("prefill-0", "decode-0")
            assert attempt.reason.startswith("prefill-0>decode-0; uncached 40 of 40 tokens; ")
            assert (attempt.transport, attempt.blocks_reused, attempt.blocks_moved) == (
                "memory",
                1,
                2,
            )
            assert (ended.finish_reason, ended.cached_tokens) == ("length", 4)
            assert cluster.find_traces(ended.trace.request) == (ended.trace,)
            sample = cluster.metrics.registry.get_sample_value
            exposed = "baton_transfer_exposed_seconds"
            assert sample(f"{exposed}_sum", {"transport": "memory"}) == attempt.exposed_s == 0.001

    run(test)


def test_without_prefill_workers_decode_works_alone() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            ended = await answers(cluster)
            assert ended.trace.attempts[0].prefill is None

    run(test)


def test_the_first_token_does_not_wait_for_the_decode_worker() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 0)]}
        async with fake_cluster(prefill=1, decode=1, plans=plans) as cluster:
            asked, heard = request(), Heard()
            async with client_of(cluster, asked, heard):
                await soon(lambda: bool(heard.tokens))
                assert isinstance(heard.told[0], Route)
                assert heard.tokens[0].token_id == next_token(asked.token_ids)
            await cluster.until_idle()

    run(test)


def test_a_first_token_that_ends_the_request_needs_no_decode() -> None:
    async def test() -> None:
        async with fake_cluster(prefill=1, decode=1) as cluster:
            await answers(cluster, max_tokens=1)
            decode = cluster.workers["decode-0"]
            await soon(lambda: not decode.working)

    run(test)


@pytest.mark.parametrize("point", [0, 1, 2])
def test_a_prefill_worker_killed_at_any_point_costs_only_time(point: int) -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("die", point)]}
        async with fake_cluster(prefill=2, decode=1, plans=plans) as cluster:
            ended = await answers(cluster)
            assert [a.prefill for a in ended.trace.attempts] == ["prefill-0", "prefill-1"]

    run(test)


@pytest.mark.parametrize("point", [0, 1, 5, 12])
def test_a_decode_worker_killed_mid_stream_is_continued_by_another(point: int) -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("die", point)]}
        async with fake_cluster(prefill=1, decode=2, plans=plans) as cluster:
            await answers(cluster)

    run(test)


def test_a_request_waits_for_the_only_decode_worker_to_be_restarted() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("die", 4)]}
        async with fake_cluster(decode=1, plans=plans, supervised=True) as cluster:
            ended = await answers(cluster)
            assert [a.decode for a in ended.trace.attempts] == ["decode-0", "decode-0"]

    run(test)


def test_a_request_whose_only_worker_never_comes_back_fails_with_the_reasons() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("die", 4)]}
        async with fake_cluster(decode=1, plans=plans, limits=ONCE) as cluster:
            with pytest.raises(RequestFailed, match=r"no decode worker.*decode-0 was lost"):
                await collect(cluster, request())

    run(test)


def test_a_worker_that_died_after_the_last_token_is_not_asked_for_more() -> None:
    async def test() -> None:
        prompt = next(
            (n, 7)
            for n in range(10_000)
            if expected_third((n, 7)) == EOS and min_index((n, 7)) == 2
        )
        plans = {"decode-0": [Act("hang", 3)]}
        async with fake_cluster(decode=2, plans=plans) as cluster:
            asked = request(prompt=prompt, ignore_eos=False)
            events = await collect(cluster, asked, Killing(cluster, at=2))
            assert tokens_of(events) == expected(prompt, asked.sampling)
            assert len(cluster.find_traces(asked.id)[0].attempts) == 1

    def expected_third(prompt: tuple[int, ...]) -> int:
        return expected(prompt, request(max_tokens=3).sampling)[-1]

    def min_index(prompt: tuple[int, ...]) -> int:
        return expected(prompt, request(max_tokens=3).sampling).index(EOS)

    run(test)


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


def test_without_a_decode_worker_a_request_is_refused_at_once() -> None:
    async def test() -> None:
        async with fake_cluster(prefill=1) as cluster:
            with pytest.raises(NoWorkers, match=r"no decode worker"):
                await collect(cluster, request())

    run(test)


def test_a_request_no_pool_can_hold_is_the_callers_mistake() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            with pytest.raises(TooLong, match=r"5040 tokens.*holds 4000"):
                await collect(cluster, request(max_tokens=5_000))

    run(test)


def test_a_request_waits_for_the_only_worker_large_enough_to_be_restarted() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("die", 4)]}
        async with fake_cluster(decode=1, plans=plans, supervised=True) as cluster:
            small = FakeWorker("decode-1", "decode", cluster.fabric, num_blocks=11)
            cluster.add(small)
            await cluster.until_ready()
            ended = await answers(cluster)
            assert [a.decode for a in ended.trace.attempts] == ["decode-0", "decode-0"]
            assert small.seen == []

    run(test)


def test_a_prompt_too_long_for_a_prefill_worker_is_no_mistake_of_the_caller() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("outgrow")]}
        async with fake_cluster(prefill=1, decode=1, plans=plans) as cluster:
            ended = await answers(cluster)
            assert [a.prefill for a in ended.trace.attempts] == ["prefill-0", None]

    run(test)


def test_a_client_that_leaves_is_aborted_on_both_workers() -> None:
    async def test() -> None:
        plans = {"prefill-0": [Act("hang", 2)]}
        async with fake_cluster(prefill=1, decode=1, plans=plans) as cluster:
            decode = cluster.workers["decode-0"]
            async with client_of(cluster, request(), Heard()):
                await soon(lambda: bool(decode.working))
            await soon(lambda: all(w.aborted for w in cluster.workers.values()))
            await cluster.until_idle()
            assert cluster.find_traces(request().id)[0].outcome == "aborted: the client is gone"

    run(test)


def test_a_cancelled_client_task_is_aborted_too() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 3)]}
        async with fake_cluster(decode=1, plans=plans) as cluster:
            async with asyncio.TaskGroup() as tasks:
                client = tasks.create_task(collect(cluster, request()), name="client")
                await soon(lambda: bool(cluster.workers["decode-0"].working))
                client.cancel()
            await soon(lambda: bool(cluster.workers["decode-0"].aborted))
            await cluster.until_idle()

    run(test)


def test_a_deadline_ends_the_request_and_aborts_it() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 3)]}
        async with fake_cluster(decode=1, plans=plans) as cluster:
            with pytest.raises(RequestFailed) as failed:
                await collect(cluster, request(deadline_s=0.3))
            assert failed.value.code == "deadline"
            await soon(lambda: bool(cluster.workers["decode-0"].aborted))
            await cluster.until_idle()

    run(test)


class Refusing(Heard):
    """Cannot take the token of index 3."""

    def token(self, token: Token) -> None:
        super().token(token)
        if token.index == 3:
            raise SlowClient(num_bytes=5)


def test_a_listener_that_takes_no_more_ends_its_request_and_no_other_at_once() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            asked, others = request(max_tokens=2_000), request(name="other")
            heard = Refusing()
            async with asyncio.TaskGroup() as tasks:
                other = tasks.create_task(collect(cluster, others), name="other")
                with pytest.raises(SlowClient, match="5 bytes wait"):
                    await collect(cluster, asked, heard)
            assert [token.index for token in heard.tokens] == [0, 1, 2, 3]
            assert tokens_of(other.result()) == expected(others.token_ids, others.sampling)
            assert len(cluster.registry.ready_workers()) == 1
            await soon(lambda: bool(cluster.workers["decode-0"].aborted))
            await cluster.until_idle()
            assert cluster.find_traces(asked.id)[0].outcome.startswith("failed: the client reads")

    run(test)


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


@pytest.mark.parametrize("deed", ["repeat", "stale"])
def test_tokens_that_come_twice_or_from_the_past_are_dropped(deed: str) -> None:
    async def test() -> None:
        act = Act("repeat" if deed == "repeat" else "stale")
        plans = {"prefill-0": [act], "decode-0": [act]}
        async with fake_cluster(prefill=1, decode=1, plans=plans) as cluster:
            ended = await answers(cluster)
            assert len(ended.trace.attempts) == 1

    run(test)


def test_a_missing_token_begins_a_new_attempt() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("skip", 5)]}
        async with fake_cluster(decode=2, plans=plans) as cluster:
            ended = await answers(cluster)
            assert "came when 5 was due" in ended.trace.attempts[0].outcome

    run(test)


def test_an_answer_whose_last_token_was_lost_is_not_taken_for_whole() -> None:
    async def test() -> None:
        prompt = next((n, 7) for n in range(10_000) if is_third((n, 7)))
        plans = {"decode-0": [Act("skip", 2)]}
        async with fake_cluster(decode=2, plans=plans) as cluster:
            asked = request(prompt=prompt, ignore_eos=False)
            events = await collect(cluster, asked)
            assert tokens_of(events) == expected(prompt, asked.sampling)
            first, _ = cluster.find_traces(asked.id)[0].attempts
            assert first.outcome == "decode-0 finished at 3 tokens, of which 2 came"

    def is_third(prompt: tuple[int, ...]) -> bool:
        sampling = request(max_tokens=3, ignore_eos=False).sampling
        answer = expected(prompt, sampling)
        return len(answer) == 3 and answer[-1] == EOS

    run(test)


def test_attempts_are_bounded_and_the_error_has_every_reason() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("fail", 1)] * 9}
        async with fake_cluster(decode=1, plans=plans) as cluster:
            with pytest.raises(RequestFailed, match=r"4 attempts were lost.*told to fail"):
                await collect(cluster, request())
            await cluster.until_idle()

    run(test)


def test_draining_workers_get_nothing_new() -> None:
    async def test() -> None:
        async with fake_cluster(decode=2) as cluster:
            cluster.workers["decode-0"].state = "draining"
            cluster.workers["decode-0"].say()
            await soon(lambda: len(cluster.registry.ready_workers()) == 1)
            ended = await answers(cluster)
            assert ended.trace.attempts[0].decode == "decode-1"

    run(test)


def test_workers_of_another_layout_are_never_paired() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            cluster.add(FakeWorker("prefill-0", "prefill", cluster.fabric, compat="other"))
            await cluster.until_ready()
            ended = await answers(cluster)
            assert ended.trace.attempts[0].prefill is None

    run(test)


def test_a_continuation_tells_the_worker_what_the_client_already_has() -> None:
    async def test() -> None:
        plans = {"decode-0": [Act("hang", 5)]}
        async with fake_cluster(decode=2, plans=plans) as cluster:
            asked = request()
            await collect(cluster, asked, Killing(cluster, at=0))
            await cluster.until_idle()
            (message,) = cluster.workers["decode-1"].seen
            assert isinstance(message, Decode)
            have = len(message.generated)
            assert 0 < have <= 5
            assert list(message.generated) == expected(asked.token_ids, asked.sampling)[:have]

    run(test)


def test_the_same_prompt_goes_where_it_was_a_moment_ago() -> None:
    async def test() -> None:
        async with fake_cluster(prefill=2, decode=2) as cluster:
            await answers(cluster)
            other = tuple(range(500, 540))
            await collect(cluster, request(prompt=other, name="other"))
            again = await answers(cluster)
            assert again.trace.attempts[0].prefill == "prefill-0"
            assert "uncached 1 of 40" in again.trace.attempts[0].reason

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
