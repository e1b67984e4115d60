"""What the machine could do: memcpy between two pools, and iperf3 over loopback.

Called by `bench.kvtransfer.__main__` in every round, so that both share the noise of the rest.
"""

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench.kvtransfer.memcpy import Copied
from bench.kvtransfer.mover import Setting
from bench.kvtransfer.pair import environment

_ROOT: Final = Path(__file__).resolve().parents[2]
_WITHIN_S: Final = 60.0
IPERF3_ABSENT: Final = "absent: no iperf3 (apt-get install iperf3)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Iperf:
    """One run of one stream over loopback."""

    write: str
    """"1M", or "default" for iperf3's own."""
    gb_s: float


def memcpy(setting: Setting, *, total_bytes: int, num_timed: int) -> list[Copied]:
    command = ["-m", "bench.kvtransfer.memcpy", setting, str(total_bytes), str(num_timed)]
    done = subprocess.run(
        [sys.executable, *command], env=environment(setting), cwd=_ROOT, timeout=_WITHIN_S,
        check=True, capture_output=True,
    )  # fmt: skip
    return msgspec.json.decode(done.stdout, type=list[Copied])


def has_iperf3() -> bool:
    return shutil.which("iperf3") is not None


def iperf3(amount: str) -> list[Iperf]:
    """One stream with writes of 1 MiB and one with the default's, of `amount`, e.g. "-t2".

    [] where iperf3 fails, which is printed."""
    try:
        return [_iperf3("1M", amount), _iperf3("default", amount)]
    except (OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
        print(f"iperf3 failed: {error}")
        return []


def _iperf3(write: str, amount: str) -> Iperf:
    port = str(_free_port())
    server = subprocess.Popen(
        ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, "--forceflush"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "listening" in line:
                break
        length = [] if write == "default" else ["-l", write]
        client = subprocess.run(
            ["iperf3", "-c", "127.0.0.1", "-p", port, amount, "-J", *length],
            capture_output=True, timeout=_WITHIN_S, check=True,
        )  # fmt: skip
        server.communicate(timeout=_WITHIN_S)
    finally:
        server.kill()
        server.wait()
    received = json.loads(client.stdout)["end"]["sum_received"]
    return Iperf(write=write, gb_s=float(received["bits_per_second"]) / 8e9)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
