"""`baton up` as a benchmark needs it: a child process with its address and its children.

Called by `bench.startup` and `bench.interference`.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Up:
    """`with Up([...flags]) as up:` returns when the cluster is ready."""

    def __init__(self, flags: Sequence[str], *, within_s: float = 120.0) -> None:
        self._command = [
            sys.executable,
            "-m",
            "controlplane.cli.entry",
            "up",
            "--port",
            "0",
            *flags,
        ]
        self._within_s = within_s
        self.url = ""
        self.ready_s = 0.0
        """Seconds from starting `baton up` to its saying that it serves."""

    def __enter__(self) -> "Up":
        self._errors = tempfile.TemporaryFile()
        began = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # ends when the process does, at the latest
        self.ready_s = time.monotonic() - began
        if " at http" not in line:
            self._process.wait(self._within_s)
            self._errors.seek(0)
            raise SystemExit(f"baton up failed:\n{self._errors.read().decode(errors='replace')}")
        self.url = line.split(" at ")[1].split()[0]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        self._errors.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = 120.0) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.code}: {error.read().decode()}") from error

    @property
    def model(self) -> str:
        """The name of what is served."""
        return str(self.get("/v1/models")["data"][0]["id"])

    def child_pids(self, module: str) -> list[int]:
        """Processes under `baton up` that run `python -m module`."""
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        pids = [int(pid) for pid in path.read_text().split()]
        return [pid for pid in pids if _runs(pid, module)]


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} shows no VmRSS")


def queued_s(pid: int) -> float:
    """Seconds that the process's threads were ready to run and had no core to run on."""
    waits_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            waits_ns += int((task / "schedstat").read_text().split()[1])
        except OSError:
            continue  # the thread has ended, or this kernel does not say
    return waits_ns / 1e9


def maps_torch(pid: int) -> bool:
    """Whether the process has torch's library loaded."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def _runs(pid: int, module: str) -> bool:
    return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
