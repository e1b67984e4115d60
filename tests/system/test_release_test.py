"""What `helm test` runs in its two pods, here as two processes before a cluster of this machine."""

import os
import subprocess
import sys

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


def test_a_release_that_cannot_answer_fails_its_test() -> None:
    env = {"ROUTER": f"http://127.0.0.1:{free_port()}", "DOCTOR": "127.0.0.1:1", "LISTEN": "::1"}
    pod = started(0, **env)
    assert pod.communicate(timeout=60)[0] and pod.returncode != 0
