"""What `helm test` runs in its two pods, here as two processes before a cluster of this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.chart import CHART
from support.cluster import Cluster
from support.processes import ROOT
from support.redis_server import free_port

pytestmark = [pytest.mark.system, pytest.mark.long]
SCRIPT = (CHART / "files" / "release_test.py").read_text()


def started(index: int, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JOB_COMPLETION_INDEX": str(index), "APART": "1", **env},
    )


def test_a_request_is_made_by_two_workers_and_two_doctors_meet(apart_cluster: Cluster) -> None:
    env = {
        "ROUTER": apart_cluster.base_url,
        "DOCTOR": f"127.0.0.1:{free_port()}",
        "LISTEN": "127.0.0.1",
    }
    token = {"BATON_TOKEN": "a job of this cluster, 0123"}
    pods = [started(index, **env, **token) for index in (0, 1)]
    try:
        told = [pod.communicate(timeout=240)[0] for pod in pods]
    finally:
        for pod in pods:
            pod.kill()
    assert [pod.returncode for pod in pods] == [0, 0], "\n".join(told)
    assert ">" in told[0] and "tcp" in told[1]


class _Router(BaseHTTPRequestHandler):
    """Lists models, and says who was asked."""

    listed: Mapping[str, int | None]
    asked: list[str]

    def do_GET(self) -> None:
        data = [{"id": name, "max_model_len": most} for name, most in self.listed.items()]
        self._answer({"data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body["model"])
        self._answer({"usage": {"completion_tokens": 16}})

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""

    def _answer(self, body: Mapping[str, Any]) -> None:
        self.send_response(200)
        self.send_header("x-baton-route", "prefill-0>decode-0; apart")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@contextmanager
def router_that_lists(models: Mapping[str, int | None]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the models that it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Router,), {"listed": models, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def test_a_model_whose_last_worker_has_left_is_not_asked() -> None:
    """It is listed for ten minutes more, as after a change of its name."""
    with router_that_lists({"old": None, "new": 2048}) as (url, asked):
        pod = started(0, ROUTER=url, DOCTOR="127.0.0.1:none", LISTEN="::1")
        told = pod.communicate(timeout=60)[0]
    assert asked == ["new"], told
    with router_that_lists({"old": None}) as (url, asked):
        pod = started(0, ROUTER=url, DOCTOR="127.0.0.1:none", LISTEN="::1")
        told = pod.communicate(timeout=60)[0]
    assert "no model is served" in told and pod.returncode != 0 and not asked


def test_a_release_that_cannot_answer_fails_its_test() -> None:
    env = {"ROUTER": f"http://127.0.0.1:{free_port()}", "DOCTOR": "127.0.0.1:1", "LISTEN": "::1"}
    pod = started(0, **env)
    assert pod.communicate(timeout=60)[0] and pod.returncode != 0
