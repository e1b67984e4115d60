"""`baton up` and its real processes: what it starts, restarts, refuses and leaves behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.cluster import ROOT, TINY, Cluster
from support.eventually import eventually
from support.hub import fill_cache
from support.redis_server import free_ports

from tools.make_checkpoint import Shape, make_checkpoint
from tools.python_path import python_path

pytestmark = pytest.mark.system
METRICS_PORT = free_ports(2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "noise"
    make_checkpoint(path, Shape(context=65536))
    return path


@pytest.fixture(scope="module")
def cluster(checkpoint: Path) -> Iterator[Cluster]:
    extra = ["--metrics-port", str(METRICS_PORT), "--hung-s", "5"]
    with Cluster(checkpoint=checkpoint, extra=extra) as cluster:
        yield cluster


def test_the_openai_sdk_gets_an_answer(cluster: Cluster) -> None:
    with cluster.openai() as client:
        answer = client.chat.completions.create(
            model=cluster.model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 or answer.choices[0].finish_reason == "stop"


def test_each_process_is_shown_under_its_own_pid(cluster: Cluster) -> None:
    workers = cluster.workers()
    assert {name: worker["role"] for name, worker in workers.items()} == {
        "prefill-0": "prefill",
        "decode-0": "decode",
    }
    for name, worker in workers.items():
        assert worker["pid"] == cluster.pid_of(name)


def test_the_command_line_talks_to_it(cluster: Cluster) -> None:
    status = _baton("status", "--url", cluster.base_url)
    assert status.returncode == 0
    assert "prefill-0" in status.stdout
    chat = _baton("chat", "--url", cluster.base_url, "--max-tokens", "3", stdin="Hello\nAgain\n")
    assert chat.returncode == 0, chat.stderr
    assert len(chat.stdout) > 0


@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_a_killed_worker_comes_back_in_a_new_epoch(cluster: Cluster, name: str) -> None:
    before = cluster.workers()[name]
    cluster.kill(name)
    after = cluster.wait_restarted(name, epoch=before["epoch"], within_s=60)
    assert after["pid"] != before["pid"]
    cluster.wait_ready("prefill-0", "decode-0")


def test_a_worker_that_lives_and_answers_nothing_is_started_again(cluster: Cluster) -> None:
    before = cluster.workers()["decode-0"]
    os.kill(before["pid"], signal.SIGSTOP)
    after = cluster.wait_restarted("decode-0", epoch=before["epoch"], within_s=120)
    assert after["pid"] != before["pid"]
    assert "decode-0: has not answered for" in cluster.log
    cluster.wait_ready("prefill-0", "decode-0")


def test_the_metrics_of_one_machine_show_pools_and_queues(cluster: Cluster) -> None:
    _complete(cluster)
    for port in (METRICS_PORT, METRICS_PORT + 1):  # prefill-0, decode-0
        worker = _metrics(f"http://127.0.0.1:{port}")
        assert worker['baton_worker_kv_blocks{state="total"}'] > 0
        assert {"baton_worker_running", "baton_worker_waiting"} <= worker.keys()
    router = _metrics(cluster.base_url)
    for role in ("prefill", "decode"):
        assert router[f'baton_pool_kv_blocks{{role="{role}",state="total"}}'] > 0
        assert f'baton_pool_requests{{role="{role}",state="waiting"}}' in router


def test_a_killed_router_comes_back_on_its_port(cluster: Cluster) -> None:
    before = cluster.kill("router")
    eventually(lambda: cluster.pid_of("router") != before, 30, "router started again")
    cluster.wait_ready("prefill-0", "decode-0", within_s=60)


def test_a_term_signal_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    shared = set(os.listdir("/dev/shm"))
    with Cluster(checkpoint=checkpoint, env={"TMPDIR": str(tmp_path)}) as cluster:
        _complete(cluster)
        processes = cluster.processes()
        assert len(processes) >= 4
        assert cluster.stop() == 0
        assert [process for process in processes if process.is_running()] == []
    assert _left_in(tmp_path) == []
    assert set(os.listdir("/dev/shm")) <= shared


def test_a_second_signal_ends_a_drain(checkpoint: Path) -> None:
    with Cluster(checkpoint=checkpoint, extra=["--drain-s", "600"]) as cluster:
        body = {"model": cluster.model, "prompt": [1], "max_tokens": 60_000, "ignore_eos": True}
        with (
            cluster.client() as client,
            client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer,
        ):
            assert answer.status_code == 200
            os.kill(cluster.pid, signal.SIGINT)
            eventually(lambda: "a second signal hurries" in cluster.log)
            assert cluster.stop(signal.SIGINT) == 0


def test_children_die_with_a_killed_supervisor(checkpoint: Path) -> None:
    cluster = Cluster(checkpoint=checkpoint).__enter__()
    try:
        processes = cluster.processes()
        os.kill(cluster.pid, signal.SIGKILL)
        eventually(lambda: not any(_runs(process) for process in processes), 15, "children gone")
    finally:
        assert cluster.stop() == -signal.SIGKILL
        cluster.close()


def test_without_prefill_workers_decode_workers_do_it_all(checkpoint: Path) -> None:
    with Cluster(checkpoint=checkpoint, prefill=0, decode=1) as cluster:
        assert set(cluster.workers()) == {"decode-0"}
        assert "prefill-" not in _complete(cluster).headers["x-baton-route"].partition(";")[0]


def test_a_taken_port_is_one_line(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = _baton("up", "--model", str(checkpoint), "--port", str(port))
    _assert_one_line(up, f"port: cannot listen on 127.0.0.1:{port}: Address already in use")


def test_a_redis_that_cannot_be_one_is_one_line(checkpoint: Path) -> None:
    url = "redis://:hidden@127.0.0.1:port/0"
    up = _baton("up", "--model", str(checkpoint), "--port", "0", "--redis", url)
    _assert_one_line(up, "redis: 'redis://127.0.0.1:port/0': its port must be a number")
    assert "hidden" not in up.stderr


def test_a_truncated_checkpoint_ends_it_with_the_workers_own_line(
    checkpoint: Path, tmp_path: Path
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    up = _baton("up", "--model", str(tmp_path), "--port", "0")
    assert up.returncode == 3
    last = up.stderr.splitlines()[-1]
    assert last.startswith("baton up: ")
    assert weights.name in last
    assert "Traceback" not in up.stderr


def _metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def _complete(cluster: Cluster) -> httpx.Response:
    body = {"model": cluster.model, "prompt": list(range(10, 60)), "max_tokens": 2}
    answer = httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def _baton(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", *argv],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
    )


def _assert_one_line(
    up: subprocess.CompletedProcess[str], says: str, *, exit_code: int = 2
) -> None:
    assert up.returncode == exit_code
    said = [line for line in up.stderr.splitlines() if line.startswith("baton up: ")]
    assert len(said) == 1
    assert says in said[0]
    assert "Traceback" not in up.stderr


def _left_in(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.startswith("baton")]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_model_is_served_by_its_name_on_the_hub(tmp_path: Path) -> None:
    """From the cache, offline; the workers find what the supervisor found."""
    fill_cache(tmp_path, TINY, name="acme/tiny-1")
    hub = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with Cluster(checkpoint=Path("acme/tiny-1"), prefill=0, dtype="auto", env=hub) as cluster:
        cluster.wait_ready("decode-0")
        models = cluster.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["acme/tiny-1"]
        body = {"model": "acme/tiny-1", "prompt": "The lamp", "max_tokens": 2}
        answer = httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert "Baton starts acme/tiny-1: " in cluster.log
