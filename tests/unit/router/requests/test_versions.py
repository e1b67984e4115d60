"""Requests of one version among workers of several, against fake workers over real sockets."""

import asyncio

import msgspec
import pytest
from support.dispatching import ONCE, client_of, run
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
from support.fake_worker import Act, FakeWorker, expected

from protocol.ids import WorkerId
from protocol.messages import Role, ServedVersion
from protocol.store.workers import ComingWorker
from router.placement.place import PlacementRules
from router.requests.dispatch import DispatchLimits
from router.requests.events import Ended, NoWorkers, VersionGone

PATIENT = DispatchLimits(rules=APART, patience_s=20.0)


def add(
    cluster: FakeCluster,
    name: str,
    revision: str,
    *,
    model: str = "fake",
    plan: tuple[Act, ...] = (),
) -> FakeWorker:
    role: Role = "prefill" if name.startswith("prefill") else "decode"
    worker = FakeWorker(
        name, role, cluster.fabric, revision=revision, model=model, plan=plan, compat=revision
    )
    return cluster.add(worker)


def of(worker: FakeWorker) -> ServedVersion:
    return worker.registration.version


async def served(cluster: FakeCluster, version: ServedVersion) -> Ended:
    asked = request(version=version)
    events = await collect(cluster, asked)
    assert tokens_of(events) == expected(asked.token_ids, asked.sampling)
    ended = events[-1]
    assert isinstance(ended, Ended)
    return ended


def test_each_request_is_computed_and_decoded_by_its_version() -> None:
    async def test() -> None:
        async with fake_cluster() as cluster:
            for name, revision in (
                *(("prefill-0", "old"), ("decode-0", "old")),
                *(("prefill-1", "new"), ("decode-1", "new")),
            ):
                add(cluster, name, revision)
            await cluster.until_ready()
            for number in (1, 0, 1):
                ended = await served(cluster, of(cluster.workers[f"decode-{number}"]))
                (attempt,) = ended.trace.attempts
                pair = (attempt.prefill, attempt.decode)
                assert pair == (f"prefill-{number}", f"decode-{number}")

    run(test)


def test_a_request_whose_worker_is_lost_stays_with_its_version_whatever_it_was_told() -> None:
    """The other's worker is idle all the time, the one that comes back only later."""

    async def test() -> None:
        async with fake_cluster(limits=PATIENT) as cluster:
            add(cluster, "decode-1", "new")
            old = add(cluster, "decode-0", "old", plan=(Act("die", 3),))
            await cluster.until_ready()
            asked, heard = request(version=of(old)), Heard()
            async with client_of(cluster, asked, heard) as client:
                await soon(lambda: "decode-0" not in cluster.registry.known_workers)
                add(cluster, "decode-2", "old")
                events = await client
            assert tokens_of(events) == expected(asked.token_ids, asked.sampling)
            ended = events[-1]
            assert isinstance(ended, Ended)
            assert [one.decode for one in ended.trace.attempts] == ["decode-0", "decode-2"]
            assert not cluster.workers["decode-1"].seen

    run(test)


def test_a_request_that_was_told_nothing_hears_that_its_version_is_gone() -> None:
    """And may be prepared again for the other: at once, whether it ever had a worker or not."""

    async def test() -> None:
        async with fake_cluster(limits=PATIENT) as cluster:
            new = add(cluster, "decode-1", "new")
            old = add(cluster, "decode-0", "old", plan=(Act("refuse"),))
            await cluster.until_ready()

            async def drain() -> None:
                await soon(lambda: bool(old.seen))
                old.state = "draining"
                old.say()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(drain(), name="drain")
                with pytest.raises(VersionGone):
                    await collect(cluster, request(version=of(old)))
            with pytest.raises(VersionGone):
                await collect(cluster, request(version=of(old)))
            assert not new.seen
            await served(cluster, of(new))

    run(test)


def test_a_version_is_replaced_by_none_of_another_model() -> None:
    async def test() -> None:
        async with fake_cluster(limits=ONCE) as cluster:
            other = add(cluster, "decode-1", "revision", model="another")
            await cluster.until_ready()
            gone = msgspec.structs.replace(of(other), model="fake")
            with pytest.raises(NoWorkers) as raised:
                await collect(cluster, request(version=gone))
            assert not isinstance(raised.value, VersionGone)

    run(test)


@pytest.mark.parametrize("model", ["fake", ""])
def test_a_new_request_waits_for_a_worker_that_loads(model: str) -> None:
    async def test() -> None:
        async with fake_cluster(limits=PATIENT) as cluster:
            wanted = FakeWorker("decode-0", "decode", cluster.fabric, revision="old")
            cluster.coming = [ComingWorker(worker=wanted.id, role="decode", model=model)]
            cluster.announce()
            await soon(lambda: cluster.registry.may_serve_soon("fake", within_s=0.0))
            asked = request(version=of(wanted))
            async with client_of(cluster, asked, Heard()) as client:
                await soon(lambda: bool(cluster.dispatcher.open_requests()))
                cluster.coming = []
                cluster.add(wanted)
                assert tokens_of(await client) == expected(asked.token_ids, asked.sampling)

    run(test)


def test_a_new_request_waits_while_the_last_worker_drains() -> None:
    async def test() -> None:
        async with fake_cluster(limits=PATIENT) as cluster:
            last = FakeWorker("decode-0", "decode", cluster.fabric, state="draining")
            cluster.add(last)
            await soon(lambda: "draining" in (cluster.registry.not_ready() or ""))
            asked = request(version=of(last))
            async with client_of(cluster, asked, Heard()) as client:
                await soon(lambda: bool(cluster.dispatcher.open_requests()))
                last.die()
                await soon(lambda: not cluster.registry.workers)
                cluster.add(FakeWorker("decode-1", "decode", cluster.fabric))
                assert tokens_of(await client) == expected(asked.token_ids, asked.sampling)

    run(test)


@pytest.mark.parametrize(
    "coming",
    [
        ComingWorker(worker=WorkerId("decode-0"), role="decode", model="another"),
        ComingWorker(worker=WorkerId("prefill-0"), role="prefill", model="fake"),
    ],
)
def test_nobody_waits_for_workers_that_would_not_serve_it(coming: ComingWorker) -> None:
    async def test() -> None:
        async with fake_cluster(limits=PATIENT) as cluster:
            add(cluster, "decode-1", "revision", model="third")
            cluster.coming = [coming]
            cluster.announce()
            await cluster.until_ready()
            wanted = ServedVersion(model="fake", revision="revision", text="text")
            with pytest.raises(NoWorkers) as raised:
                await asyncio.wait_for(collect(cluster, request(version=wanted)), 15)
            assert str(raised.value) == "no decode worker"

    run(test)


def test_who_waits_for_room_of_one_model_keeps_nobody_from_another() -> None:
    """As many as its worker takes, and more, hang there."""
    full = DispatchLimits(rules=PlacementRules(local_prefill="auto", worker_queue_s=0.05))

    async def test() -> None:
        async with fake_cluster(limits=full) as cluster:
            busy = add(cluster, "decode-0", "old", plan=(Act("hang", 0),) * 8)
            free = add(cluster, "decode-1", "new")
            await cluster.until_ready()
            async with asyncio.TaskGroup() as tasks:
                waiting = [
                    tasks.create_task(
                        collect(cluster, request(name=f"r{n}", prompt=tuple(range(200)),
                                                 version=of(busy))),
                        name=f"r{n}",
                    )
                    for n in range(8)
                ]  # fmt: skip
                queued = "baton_router_queue_tokens"
                sample = cluster.metrics.registry.get_sample_value
                await soon(lambda: (sample(queued) or 0) > 0)
                await asyncio.wait_for(served(cluster, of(free)), 15)
                assert (sample(queued) or 0) > 0
                for one in waiting:
                    one.cancel()

    run(test)
