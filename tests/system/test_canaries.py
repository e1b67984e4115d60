"""One block between real workers: before the second is ready, and where it cannot come."""

import asyncio
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.eventually import START_S, eventually
from support.redis_server import free_ports
from support.worker_cluster import WorkerCluster, tiny_checkpoint

from protocol.store.workers import Store, WorkerRecord


def ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()
    except OSError:
        return 0, ""


def canaries(port: int, outcome: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    wanted = f'baton_worker_canaries_total{{outcome="{outcome}"}} '
    return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if wanted in line)


def test_a_block_comes_from_a_peer_before_a_worker_is_ready(tmp_path: Path) -> None:
    first = free_ports(2)
    with ExitStack() as stack:
        cluster = WorkerCluster(tiny_checkpoint(tmp_path / "tiny"), stack)
        cluster.start("prefill-0", "--metrics-port", str(first))
        eventually(lambda: ready(first)[0] == 200, START_S, "alone, it is ready")
        cluster.start("decode-0", "--metrics-port", str(first + 1))
        eventually(lambda: ready(first + 1)[0] == 200, START_S, "a block has come")
        assert canaries(first + 1, "landed") == 1.0
        assert canaries(first + 1, "failed") == 0.0


@pytest.mark.long
def test_a_worker_to_which_no_block_comes_is_not_ready_while_that_peer_is_there(
    tmp_path: Path,
) -> None:
    """The peer has gone, and its entry has not: nobody listens where it says."""
    first = free_ports(2)

    async def change(*, is_there: bool) -> None:
        store = Store(cluster.redis.address)
        try:
            if is_there:
                await store.register(ghost, ttl_s=600)
            else:
                await store.deregister(ghost.registration.worker, ghost.registration.epoch)
        finally:
            await store.close()

    async def known() -> WorkerRecord:
        store = Store(cluster.redis.address)
        try:
            (record,) = await store.list_workers()
            return record
        finally:
            await store.close()

    with ExitStack() as stack:
        cluster = WorkerCluster(tiny_checkpoint(tmp_path / "tiny"), stack)
        prefill = cluster.start("prefill-0", "--metrics-port", str(first))
        eventually(lambda: ready(first)[0] == 200, START_S, "alone, it is ready")
        ghost = asyncio.run(known())
        prefill.ask()
        assert prefill.wait() == 0
        asyncio.run(change(is_there=True))
        cluster.start("decode-0", "--metrics-port", str(first + 1))
        eventually(lambda: "no KV comes from prefill-0" in ready(first + 1)[1], START_S)
        assert ready(first + 1)[0] == 503
        asyncio.run(change(is_there=False))
        eventually(lambda: ready(first + 1)[0] == 200, what="there is nobody to ask")
