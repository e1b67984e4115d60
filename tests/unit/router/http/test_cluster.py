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

from protocol.ids import RouterId, WorkerId
from protocol.store.address import RedisAddress
from protocol.store.workers import ComingWorker, Store
from router.http.cluster import LocalCluster
from router.workers.index_feed import IndexFeed

NOBODY = RedisAddress(url="redis://127.0.0.1:1")

pytestmark = pytest.mark.anyio


def local(cluster: FakeCluster, patience_s: float = 15.0) -> LocalCluster:
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
async def http(bench: Bench, cluster: FakeCluster, **of: float) -> AsyncIterator[httpx.AsyncClient]:
    shown = local(cluster, **of)
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


@pytest.mark.parametrize(("patience_s", "status"), [(60.0, 200), (0.0, 503)])
async def test_it_stays_ready_while_requests_wait_for_the_next_decode_worker(
    bench: Bench, patience_s: float, status: int
) -> None:
    """With no other router that is, a service would refuse what this one would let wait."""
    async with fake_cluster(decode=1) as cluster:
        await until_known(cluster, 1)
        async with http(bench, cluster, patience_s=patience_s) as client:
            assert (await client.get("/ready")).status_code == 200
            cluster.workers["decode-0"].die()
            await soon(lambda: not cluster.registry.workers)
            assert (await client.get("/ready")).status_code == status


async def test_it_is_not_ready_before_the_first_decode_worker_is(bench: Bench) -> None:
    async with fake_cluster() as cluster:
        loads = ComingWorker(worker=WorkerId("decode-0"), role="decode", model="fake")
        cluster.coming = [loads]
        cluster.announce()
        await soon(lambda: cluster.registry.may_serve_soon(None, within_s=60.0))
        async with http(bench, cluster) as client:
            assert (await client.get("/ready")).status_code == 503
            cluster.add(FakeWorker("decode-0", "decode", cluster.fabric))
            await until_known(cluster, 1)
            assert (await client.get("/ready")).status_code == 200
