"""`baton workers`: prefill and decode of one node under one supervisor, with fixed ports."""

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

from support.eventually import START_S, eventually
from support.processes import process
from support.redis_server import free_ports, redis_server
from support.worker_cluster import tiny_checkpoint

from protocol.messages import Registration
from protocol.store.address import RedisAddress
from protocol.store.workers import Store


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def registered(address: RedisAddress) -> dict[str, Registration]:
    async def look() -> dict[str, Registration]:
        store = Store(address)
        try:
            found = [record.registration for record in await store.list_workers()]
            return {str(one.worker): one for one in found}
        finally:
            await store.close()

    return asyncio.run(look())


def test_a_node_runs_both_roles_tells_of_them_at_one_port_and_drains_all(tmp_path: Path) -> None:
    first = free_ports(3)
    model = tiny_checkpoint(tmp_path / "tiny")
    with redis_server() as redis:
        flags = ("--redis", redis.url, "--model", str(model), "--worker", "node-a")
        ports = ("--metrics-port", str(first), "--port", str(first + 1))
        with process(
            "controlplane.cli.main", "workers", *flags, *ports,
            "--device", "cpu", "--kv-blocks", "64", "--verbose", "--served-name", "tiny",
            env={},
        ) as node:  # fmt: skip
            url = f"http://127.0.0.1:{first}"
            eventually(lambda: asked(f"{url}/health")[0] == 200, START_S)
            status, why = asked(f"{url}/ready")
            assert status == 503 and "prefill-0: " in why and "decode-0: " in why
            eventually(lambda: asked(f"{url}/ready")[0] == 200, START_S, "the node is ready")
            workers = registered(redis.address)
            assert workers.keys() == {"node-a-prefill-0", "node-a-decode-0"}
            at = {name: one.address for name, one in workers.items()}
            assert at["node-a-prefill-0"] == f"tcp://127.0.0.1:{first + 1}"
            assert at["node-a-decode-0"] == f"tcp://127.0.0.1:{first + 2}"
            metrics = asked(f"{url}/metrics")[1]
            assert 'baton_worker_running{worker="prefill-0"} 0.0' in metrics
            assert 'baton_worker_running{worker="decode-0"} 0.0' in metrics
            said = "Workers of tiny are ready: prefill-0, decode-0"
            eventually(lambda: said in node.output, what=said)
            assert len(node.events("serving")) == 2, "lines of the workers as they are"
            node.ask()
            assert node.wait() == 0
            assert len(node.events("drained")) == 2
            assert registered(redis.address) == {}
