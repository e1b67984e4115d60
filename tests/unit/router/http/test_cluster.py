"""What HTTP shows of a cluster of fake workers on real links."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from msgspec import structs
from support.api import Bench
from support.eventually import soon
from support.fake_cluster import FakeCluster, fake_cluster
from support.fake_worker import FakeWorker

from protocol.ids import RouterId
from protocol.store.address import RedisAddress
from protocol.store.workers import Store
from router.http.cluster import LocalCluster
from router.workers.index_feed import IndexFeed

NOBODY = RedisAddress(url="redis://127.0.0.1:1")

pytestmark = pytest.mark.anyio


def local(cluster: FakeCluster, *, patience_s: float = 0.0) -> LocalCluster:
    return LocalCluster(
        router=RouterId("router"),
        registry=cluster.registry,
        index=cluster.index,
        feed=IndexFeed(
            store=Store(NOBODY),  # asked by nobody: the feed does not run
            index=cluster.index,
            registry=cluster.registry,
            metrics=cluster.metrics,
        ),
        traces=cluster.traces,
        metrics=cluster.metrics,
        patience_s=patience_s,
    )


@asynccontextmanager
async def http(
    bench: Bench, cluster: FakeCluster, *, patience_s: float = 0.0
) -> AsyncIterator[httpx.AsyncClient]:
    shown = local(cluster, patience_s=patience_s)
    async with bench.client(cluster=shown, dispatcher=cluster.dispatcher) as client:
        yield client


def of_wire_7(worker: FakeWorker) -> FakeWorker:
    worker.registration = structs.replace(worker.registration, wire=7, text="")
    return worker


async def until_known(cluster: FakeCluster, num_workers: int) -> None:
    """So many workers have said what they are."""
    registry = cluster.registry
    await soon(lambda: sum(w.state != "connecting" for w in registry.workers) == num_workers)


async def test_cluster_says_why_a_worker_is_not_used(bench: Bench) -> None:
    async with fake_cluster(prefill=1, decode=1) as cluster:
        others = [
            FakeWorker("prefill-1", "prefill", cluster.fabric, compat="other"),
            FakeWorker("prefill-2", "prefill", cluster.fabric, state="draining"),
            of_wire_7(FakeWorker("prefill-3", "prefill", cluster.fabric)),
        ]
        for worker in others:
            cluster.add(worker)
        await until_known(cluster, 5)
        async with http(bench, cluster) as client:
            shown = (await client.get("/cluster")).json()["workers"]
            assert (await client.get("/ready")).json() == {"ready": True}
        assert [(worker["id"], worker["state"], worker["why"]) for worker in shown] == [
            ("decode-0", "ready", ""),
            ("prefill-0", "ready", ""),
            ("prefill-1", "ready", "no decode worker shares its model and KV layout"),
            ("prefill-2", "draining", "draining"),
            ("prefill-3", "lost", "it speaks wire 7, which tells no text"),
        ]


async def test_not_ready_says_of_every_worker_why_and_of_none_where(bench: Bench) -> None:
    async with fake_cluster(prefill=1) as cluster:
        cluster.add(of_wire_7(FakeWorker("decode-0", "decode", cluster.fabric)))
        cluster.add(FakeWorker("decode-1", "decode", cluster.fabric, state="draining"))
        cluster.add(FakeWorker("prefill-1", "prefill", cluster.fabric, state="draining"))
        await until_known(cluster, 4)
        async with http(bench, cluster) as client:
            response = await client.get("/ready")
            shown = {w["id"]: w["why"] for w in (await client.get("/cluster")).json()["workers"]}
        assert response.status_code == 503
        assert response.json()["reason"] == (
            "no decode worker; decode: it speaks wire 7, which tells no text; "
            "decode: draining; prefill: draining"
        )
        assert shown["prefill-0"] == "there is no decode worker"


async def test_a_router_is_ready_while_requests_wait_for_a_worker_that_is_replaced(
    bench: Bench,
) -> None:
    """Otherwise no Service would bring one that could wait."""
    async with fake_cluster(decode=1) as cluster:
        (worker,) = cluster.workers.values()
        worker.die()
        await soon(lambda: cluster.registry.not_ready() is not None)
        async with http(bench, cluster, patience_s=60) as client:
            assert (await client.get("/ready")).json() == {"ready": True}
        async with http(bench, cluster, patience_s=0) as client:
            assert (await client.get("/ready")).status_code == 503


async def test_a_router_that_had_no_worker_yet_is_not_ready_for_one_that_leaves(
    bench: Bench,
) -> None:
    async with fake_cluster() as cluster:
        cluster.add(FakeWorker("decode-0", "decode", cluster.fabric, state="draining"))
        await until_known(cluster, 1)
        async with http(bench, cluster, patience_s=60) as client:
            assert (await client.get("/ready")).status_code == 503
