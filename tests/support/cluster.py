"""A real cluster on loopback: `baton up` in a process of its own, with free ports.

For system tests. What the processes wrote is shown when an assertion inside `with` fails.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
from openai import OpenAI
from support.eventually import START_S, WITHIN_S, eventually

from tools.python_path import python_path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
STOP_S = 45.0


class Cluster:
    """`with Cluster(prefill=1, decode=2) as cluster:` gives a ready cluster, and ends it."""

    def __init__(
        self,
        *,
        checkpoint: Path = TINY,
        prefill: int = 1,
        decode: int = 1,
        dtype: str = "float32",
        extra: Sequence[str] = (),
        env: dict[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        """`extra` is more flags, also those of the children; `wait=False` does not wait until
        it is ready."""
        self.model = checkpoint.name
        self.names = (
            *(f"prefill-{index}" for index in range(prefill)),
            *(f"decode-{index}" for index in range(decode)),
        )
        """Ids of the workers."""
        self.base_url = ""
        """E.g. `http://127.0.0.1:41234`; known once ready."""
        pools = ("--prefill", str(prefill), "--decode", str(decode))
        where = ("--model", str(checkpoint), "--dtype", dtype, "--port", "0", "--verbose")
        # Also where there is a GPU: these tests are not of it.
        here = ("--device", "cpu")
        command = [sys.executable, "-m", "controlplane.cli.entry", "up"]
        self._command = [*command, *where, *pools, *here, *extra]
        self._env = {**os.environ, "PYTHONPATH": python_path(ROOT), **(env or {})}
        self._wait = wait
        self._directory = tempfile.TemporaryDirectory(prefix="cluster-")
        self._log = Path(self._directory.name) / "log"
        self._out = Path(self._directory.name) / "out"
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Cluster":
        with self._log.open("wb") as err, self._out.open("wb") as out:
            self._supervisor = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self._env
            )
        if self._wait:
            try:
                self.wait_up()
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            exit_code = self.stop()
            if error is None:
                assert exit_code == 0, f"baton up ended with {exit_code}:\n{self.log}"
        finally:
            if error is not None:
                sys.stderr.write(f"---- log of the cluster ----\n{self.log[-20_000:]}\n")
            self.close()

    def close(self) -> None:
        """Forgets the logs. For a cluster that ended otherwise than by leaving the `with`."""
        self._directory.cleanup()

    # -- the supervisor -------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._supervisor is not None
        return self._supervisor.pid

    @property
    def log(self) -> str:
        """All that the supervisor and its children have written to stderr so far."""
        return self._log.read_text(errors="replace")

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def wait_up(self, within_s: float = START_S) -> None:
        """Until `baton up` says where it serves."""
        eventually(self._find_url, within_s, "baton up is ready")

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = STOP_S) -> int:
        """Signals the supervisor and waits; its exit code. Kills it all if it takes too long."""
        assert self._supervisor is not None
        children = self.processes() if self._supervisor.poll() is None else []
        if self._supervisor.poll() is None:
            self._supervisor.send_signal(number)
        try:
            return self._supervisor.wait(within_s)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            for child in children:
                child.kill() if child.is_running() else None
            self._supervisor.wait()
            raise AssertionError(f"baton up did not stop within {within_s} s") from None

    def processes(self) -> list[psutil.Process]:
        """The supervisor's children and theirs, as they are now."""
        return psutil.Process(self.pid).children(recursive=True)

    def pid_of(self, name: str) -> int:
        """Process id of `router`, `redis` or a worker, as the supervisor last started it."""
        events = re.findall(rf"^{re.escape(name)}: started(?: again)?, pid (\d+)$", self.log, re.M)
        assert events, f"the supervisor never started {name}"
        return int(events[-1])

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signals `router`, `redis` or a worker. The process id it had."""
        pid = self.pid_of(name)
        os.kill(pid, number)
        return pid

    # -- the router -----------------------------------------------------------------------

    def client(self, timeout_s: float = 60.0) -> httpx.Client:
        """Close it, or use it in a `with`."""
        return httpx.Client(base_url=self.base_url, timeout=timeout_s)

    def openai(self) -> OpenAI:
        """The SDK as a user has it. Close it, or use it in a `with`."""
        return OpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.base_url + path, timeout=10)

    def workers(self) -> dict[str, dict[str, Any]]:
        """What `/cluster` shows of each worker, by its id; empty while no router answers."""
        try:
            answer = self.get("/cluster")
        except httpx.HTTPError:
            return {}
        return {worker["id"]: worker for worker in answer.json()["workers"]}

    def wait_ready(self, *names: str, within_s: float = START_S) -> None:
        """Until these workers are ready (if none is named: the router takes requests)."""
        eventually(lambda: self._is_ready(names), within_s, f"ready: {names or 'the router'}")

    def wait_restarted(self, name: str, *, epoch: int, within_s: float = START_S) -> dict[str, Any]:
        """Until the worker is ready in another epoch than that; what `/cluster` shows of it."""

        def successor() -> dict[str, Any] | None:
            worker = self.workers().get(name)
            fresh = worker is not None and worker["epoch"] != epoch
            return worker if worker is not None and fresh and worker["state"] == "ready" else None

        found = eventually(successor, within_s, f"{name} ready in a new epoch")
        assert found is not None
        return found

    def placed(self, request: str) -> dict[str, Any]:
        """What the router said when it placed the first attempt at this request."""
        line = rf'\{{.*"event":"placed".*"request":"{request}~\d+","attempt":1\b.*\}}'
        found = eventually(lambda: re.search(line, self.log), within_s=30, what=f"{request} placed")
        assert found is not None
        event: dict[str, Any] = json.loads(found[0])
        return event

    def wait_idle(self, within_s: float = WITHIN_S) -> None:
        """Until nothing runs and every block of every ready worker is back in its pool."""
        eventually(self._is_idle, within_s, "every pool back at its size")

    def _is_ready(self, names: Sequence[str]) -> bool:
        try:
            if self.get("/ready").status_code != 200:
                return False
        except httpx.HTTPError:
            return False
        workers = self.workers()
        return all(name in workers and workers[name]["state"] == "ready" for name in names)

    def _is_idle(self) -> bool:
        workers = [w for w in self.workers().values() if w["state"] == "ready"]
        return bool(workers) and all(_is_idle(worker) for worker in workers)

    def _find_url(self) -> bool:
        assert self._supervisor is not None
        code = self._supervisor.poll()
        assert code is None, f"baton up ended with {code}:\n{self.log}"
        found = re.search(r"^Baton serves .* at (http\S+)", self.out, re.M)
        if found:
            self.base_url = found.group(1)
        return bool(found)


def _is_idle(worker: dict[str, Any]) -> bool:
    blocks = worker["blocks"]
    at_rest = worker["running"] == worker["waiting"] == blocks["leased"] == 0
    return at_rest and bool(blocks["free"] + blocks["cached"] == blocks["total"])
