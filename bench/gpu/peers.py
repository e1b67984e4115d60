"""Runs the peers, each in a process and within a time; a failure is a result with its reason."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REASON_CHARS = 400
PYTHON = "PEERS_PYTHON"
"""Names a Python for them: our packages may be others than those that they were installed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One measurement of `bench.gpu.peer`."""

    kind: str
    batch: int
    context: int
    steps: int

    @property
    def name(self) -> str:
        return f"transformers_{self.kind}_b{self.batch}"


def run(
    peer: Peer, directory: Path, *, device: str, dtype: str, within_s: float
) -> Mapping[str, float | str]:
    """`step_s`, `prefill_s` and `version`, or `failed` with the reason."""
    command = [
        os.environ.get(PYTHON) or sys.executable, "-m", "bench.gpu.peer", peer.kind, str(directory),
        "--batch", str(peer.batch), "--context", str(peer.context), "--steps", str(peer.steps),
        "--device", device, "--dtype", dtype,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {within_s:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"failed": " | ".join(lines[-3:])[-REASON_CHARS:]}
    results: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return results
