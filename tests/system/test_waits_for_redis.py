"""Processes that start before their Redis: they say that they wait, serve when it is there, and end
when they are asked to, whatever a name server does."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import TINY, Cluster
from support.eventually import START_S, WITHIN_S, eventually
from support.processes import Process, process
from support.redis_server import RedisServer, free_port

from protocol.store.contact import REMIND_S

CHAT = {
    "messages": [{"role": "user", "content": "Say something."}],
    "max_tokens": 8,
    "temperature": 0,
}
WORKER = ("--model", str(TINY), "--device", "cpu", "--threads", "1", "--kv-blocks", "64")


def get(port: int, path: str) -> httpx.Response | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
    except httpx.TransportError:
        return None


def says(port: int, path: str, status: int, text: str) -> bool:
    answer = get(port, path)
    return answer is not None and answer.status_code == status and text in answer.text


def chat(port: int) -> str:
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


class Early:
    """A router and workers, started before their Redis."""

    def __init__(self, stack: ExitStack, redis: str, *, roles: Sequence[str]) -> None:
        self.ports = {name: free_port() for name in ("router", *roles)}
        flags = ("--redis", redis)
        self.processes: dict[str, Process] = {
            "router": stack.enter_context(
                process("router", *flags, "--port", str(self.ports["router"]))
            )
        }
        for role in roles:
            port = str(self.ports[role])
            words = (*flags, *WORKER, "--worker", role, "--metrics-port", port)
            self.processes[role] = stack.enter_context(process(f"{role}_worker", *words))

    def wait(self, status: int, text: str, *, within_s: float = START_S) -> None:
        """Until `/ready` of each says that; meanwhile none ends, and each lives."""
        for name, port in self.ports.items():
            said = partial(says, port, "/ready", status, text)
            eventually(said, within_s, f"/ready of {name}: {text}")
            assert says(port, "/health", 200, "")
        assert all(one.exit_code is None for one in self.processes.values())

    def end(self) -> None:
        for one in self.processes.values():
            one.ask()
        for one in self.processes.values():
            assert one.wait(WITHIN_S * 2) == 0, one.output[-3000:]
            assert "Traceback" not in one.output


def _missed(one: Process) -> bool:
    return bool(one.events("Redis lost"))


def _met_again(one: Process) -> bool:
    return len(one.events("Redis connected")) > 1


def meets_redis_that_comes(*, late_s: float, roles: Sequence[str]) -> None:
    server = RedisServer()
    with ExitStack() as stack:
        early = Early(stack, server.url, roles=roles)
        waits = f"waits for Redis at 127.0.0.1:{server.port}"
        early.wait(503, waits)
        asyncio.run(asyncio.sleep(late_s))
        early.wait(503, waits)
        for one in early.processes.values():
            said_at = [float(str(said["time"])) for said in one.events(waits)]
            assert said_at  # and then at times
            assert all(later - sooner > REMIND_S - 1 for sooner, later in pairwise(said_at))
        stack.callback(server.kill)
        server.start()
        early.wait(200, "")
        before = chat(early.ports["router"])
        server.kill()
        assert chat(early.ports["router"]) == before
        asyncio.run(asyncio.sleep(late_s))
        for one in early.processes.values():
            eventually(partial(_missed, one), WITHIN_S, "Redis is missed")
        assert chat(early.ports["router"]) == before
        early.wait(200, "")  # those that are known are known
        server.start()
        for one in early.processes.values():
            eventually(partial(_met_again, one), WITHIN_S, "Redis is met again")
        assert chat(early.ports["router"]) == before
        early.end()


def test_all_wait_for_a_redis_that_comes_late_and_serve_while_it_is_away() -> None:
    meets_redis_that_comes(late_s=0.0, roles=("decode",))


@pytest.mark.long
def test_half_a_minute_late_and_half_a_minute_away() -> None:
    meets_redis_that_comes(late_s=31.0, roles=("prefill", "decode"))


def test_two_clusters_in_one_database_never_meet_and_wait_for_a_redis_with_a_password() -> None:
    """Of one model's name, with workers of one name. Nobody who looks at the machine's processes or
    reads the logs learns the password."""
    server = RedisServer(password="s3cret")
    url = server.url.replace("//", "//:s3cret@")
    with ExitStack() as stack:
        clusters = [
            stack.enter_context(
                Cluster(
                    prefill=0,
                    env={"BATON_REDIS": url},
                    extra=("--redis-prefix", f"{name}:", "--kv-blocks", "64"),
                    wait=False,
                )
            )
            for name in ("staging", "production")
        ]
        for up in clusters:
            eventually(partial(_all_wait, up), START_S, "router and worker wait")
        stack.callback(server.kill)
        server.start()
        for up in clusters:
            up.wait_up()
        epochs = [up.workers()["decode-0"]["epoch"] for up in clusters]
        assert epochs[0] != epochs[1]
        for up in clusters:
            assert set(up.workers()) == {"decode-0"}
            assert chat(int(up.base_url.rpartition(":")[2]))
            lines = [" ".join(one.cmdline()) for one in up.processes()]
            assert any("decode_worker" in line for line in lines)
            assert "s3cret" not in "".join(lines) + up.log + up.out
        with server.client() as redis:
            assert {key.partition(b":")[0] for key in redis.scan_iter()} == {
                b"staging",
                b"production",
            }


def _all_wait(up: Cluster) -> bool:
    return up.log.count("waits for Redis at") >= 2


NAMESERVER = "192.0.2.1"
"""Of a network for documentation: no packet to it is answered."""
SILENT = """
ip link set lo up && ip link add silent type veth peer name void && ip link set silent arp off &&
ip addr add 192.0.2.2/24 dev silent && ip link set silent up && ip link set void up &&
mount --bind "$1" /etc/resolv.conf && shift && exec "$@"
"""
can_unshare = shutil.which("unshare") is not None and os.geteuid() == 0


@pytest.mark.skipif(not can_unshare, reason="makes a network of its own: root's alone")
@pytest.mark.parametrize("module", ["router", "decode_worker"])
def test_a_name_server_that_never_answers_holds_up_neither_health_nor_an_end(
    module: str, tmp_path: Path
) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text(f"nameserver {NAMESERVER}\noptions timeout:30 attempts:1\n")
    port = free_port()
    where = ("--port", str(port)) if module == "router" else ("--metrics-port", str(port), *WORKER)
    inside = ("unshare", "--net", "--mount", "sh", "-c", SILENT, "sh", str(resolver))
    with process(module, "--redis", "redis://nowhere.example:6379", *where, before=inside) as made:
        waits = "waits for Redis at nowhere.example:6379"
        eventually(lambda: _inside(made, port, "/health").get("status") == 200, START_S)
        eventually(lambda: waits in str(_inside(made, port, "/ready").get("text")), START_S)
        made.ask(signal.SIGTERM)
        assert made.wait(WITHIN_S) == 0, made.output[-3000:]


_ASK = """
import http.client, json, sys
asked = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
asked.request("GET", sys.argv[2])
answer = asked.getresponse()
print(json.dumps({"status": answer.status, "text": answer.read().decode()}))
"""


def _inside(made: Process, port: int, path: str) -> dict[str, Any]:
    """What is answered in the network of that process; nothing while nobody listens there."""
    enter = ("nsenter", "--net", "--target", str(made.pid), "python3", "-c", _ASK, str(port), path)
    said = subprocess.run(enter, capture_output=True, text=True, timeout=60, check=False)
    return dict(json.loads(said.stdout)) if said.returncode == 0 else {}
