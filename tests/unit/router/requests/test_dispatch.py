"""One request's life, against fake workers over real sockets on loopback."""

import asyncio

import pytest
from support.dispatching import (
    ONCE,
    Killing,
    answers,
    client_of,
    run,
)
from support.eventually import soon
from support.fake_cluster import (
    Heard,
    collect,
    fake_cluster,
    request,
    tokens_of,
)
from support.fake_worker import EOS, Act, FakeWorker, expected, next_token

from protocol.messages import Decode, Token
from router.requests.events import (
    NoWorkers,
    RequestFailed,
    Route,
    RouterEnds,
    SlowClient,
    TooLong,
)


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


def test_requests_that_a_router_leaves_end_and_so_on_their_workers() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1, plans={"decode-0": [Act("hang", 2)]}) as cluster:
            asked = request()
            open_one = asyncio.ensure_future(collect(cluster, asked))
            worker = cluster.workers["decode-0"]
            await soon(lambda: bool(worker.seen))
            cluster.dispatcher.end_requests()
            with pytest.raises(RouterEnds):
                await open_one
            with pytest.raises(RouterEnds):
                await answers(cluster)
            assert cluster.find_traces(asked.id)[0].outcome == "failed: this router ends"
            await soon(lambda: bool(worker.aborted))

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
