"""Requests whose tokens take the fast path, against fake workers over real sockets on loopback."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from support.eventually import soon
from support.fake_cluster import APART, FakeCluster, fake_cluster, request
from support.fake_worker import Act, expected
from support.streamed import stream_of, streamed

from router.fast_path.fast_path import FastPath
from router.fast_path.native.library import kernels
from router.placement.place import DEFAULT_RULES
from router.requests.dispatch import DispatchLimits
from router.requests.events import RequestFailed
from router.requests.open_request import OpenRequest

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler")
HANGS = {"decode-0": [Act("hang", 5)]}
ANYWHERE = DispatchLimits(rules=DEFAULT_RULES)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


def path_of(cluster: FakeCluster) -> FastPath:
    assert cluster.fast_path is not None
    return cluster.fast_path


async def joined(cluster: FakeCluster) -> OpenRequest:
    await soon(lambda: path_of(cluster).num_streams == 1)
    (opened,) = cluster.dispatcher.open_requests()
    return opened


def test_what_a_worker_says_next_goes_past_python_and_is_counted() -> None:
    async def test() -> None:
        asked = request(max_tokens=40)
        async with fake_cluster(decode=1, plans=HANGS, limits=ANYWHERE) as cluster:
            async with streamed(buffer_bytes=1 << 18) as (heard, got), asyncio.TaskGroup() as tasks:
                answer = tasks.create_task(cluster.dispatcher.generate(asked, heard))
                await joined(cluster)
                cluster.workers["decode-0"].resumed.set()
                ended = await answer
            due = expected(asked.token_ids, asked.sampling)
            assert got == stream_of(due)
            assert len(heard.tokens) + heard.num_passed == 40
            assert len(heard.tokens) <= 5
            assert ended.trace.output_tokens == 40
            sample = cluster.metrics.registry.get_sample_value
            assert sample("baton_inter_token_seconds_count") == 39
            assert path_of(cluster).num_streams == 0

    run(test)


def test_when_its_worker_dies_another_goes_on_where_it_was() -> None:
    async def test() -> None:
        asked = request(max_tokens=200)
        async with fake_cluster(decode=1, plans=HANGS, limits=ANYWHERE) as cluster:
            async with streamed() as (heard, got), asyncio.TaskGroup() as tasks:
                answer = tasks.create_task(cluster.dispatcher.generate(asked, heard))
                opened = await joined(cluster)
                worker = cluster.workers["decode-0"]
                worker.pace_s = 0.001
                worker.resumed.set()
                await soon(lambda: opened.last_token_at > opened.context.last_token_at)
                cluster.restart_when_dead(worker)
                worker.die()
                ended = await answer
            assert got == stream_of(expected(asked.token_ids, asked.sampling))
            assert len(ended.trace.attempts) == 2

    run(test)


def test_a_client_that_leaves_takes_its_stream_from_the_path() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1, plans=HANGS, limits=ANYWHERE) as cluster:
            async with streamed() as (heard, _):
                answer = asyncio.ensure_future(
                    cluster.dispatcher.generate(request(max_tokens=40), heard)
                )
                await joined(cluster)
                answer.cancel()
                await asyncio.wait([answer])
                assert path_of(cluster).num_streams == 0
            await cluster.until_idle()

    run(test)


def test_what_its_client_cannot_take_any_more_ends_its_request_alone() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1, plans=HANGS, limits=ANYWHERE) as cluster:
            async with streamed(bytes_a_turn=1) as (heard, _):
                heard.refuse_rest = RequestFailed("slow", code="internal", retryable=False)
                answer = asyncio.ensure_future(
                    cluster.dispatcher.generate(request(max_tokens=400), heard)
                )
                await joined(cluster)
                cluster.workers["decode-0"].resumed.set()
                with pytest.raises(RequestFailed, match="slow"):
                    await answer
                assert path_of(cluster).num_streams == 0
            await cluster.until_idle()
            assert cluster.registry.ready_workers()

    run(test)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_workers_do_and_however_slowly_it_reads_a_client_gets_every_token_once(
    seed: int,
) -> None:
    deeds = [Act("repeat"), Act("stale"), Act("skip", 9), Act("die", 20), Act("fail", 30)]
    plans = {name: [*deeds[seed:], *deeds[:seed]] for name in ("decode-0", "decode-1")}
    limits = DispatchLimits(max_attempts=20, full_pause_s=0.01, rules=APART)

    async def test() -> None:
        async with fake_cluster(
            prefill=1, decode=2, plans=plans, limits=limits, supervised=True
        ) as cluster:
            for worker in cluster.workers.values():
                worker.pace_s = 0.0002
            for number in range(3):
                asked = request(max_tokens=120, name=f"r{number}", prompt=(number, 5, 6, 7))
                async with streamed(bytes_a_turn=100 * 10**number) as (heard, got):
                    await cluster.dispatcher.generate(asked, heard)
                assert got == stream_of(expected(asked.token_ids, asked.sampling))

    run(test)
