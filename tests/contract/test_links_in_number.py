"""Links of a router that has many workers, few sockets, or a resolver that does not answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.python_path import python_path

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": python_path(TESTS.parent, TESTS)}
NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount")
SILENT = (
    "ip link set lo up && mount --bind {resolv} /etc/resolv.conf && "
    "exec {python} -m support.silent_resolver"
)


def said(*command: str) -> dict[str, object]:
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, timeout=100, check=False, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def may_not() -> str:
    """Why no namespaces can be made here."""
    try:
        tried = subprocess.run(
            [*NAMESPACES, "ip", "link"], capture_output=True, timeout=10, check=False
        )
    except OSError as error:
        return str(error)
    return tried.stderr.decode() if tried.returncode else ""


@pytest.mark.slow
def test_a_worker_under_a_name_that_never_resolves_is_alone_not_reached(tmp_path: Path) -> None:
    if why := may_not():
        pytest.skip(f"no namespaces: {why}")
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\n")
    command = SILENT.format(resolv=resolv, python=sys.executable)
    told = said(*NAMESPACES, "sh", "-c", command)
    assert told["ready"] == told["looks"]
    assert "tcp://never.example:1: no address within" in str(told["why"])


@pytest.mark.slow
def test_a_router_out_of_descriptors_refuses_workers_with_a_reason_and_serves_the_others() -> None:
    told = said(sys.executable, "-m", "support.many_workers", "120", "256")
    assert told["alive"] and 10 < int(str(told["ready"])) < 120
    assert "Too many open files" in str(told["why"])


@pytest.mark.long
def test_a_router_has_a_thousand_workers() -> None:
    """Three sockets each: three times what ZeroMQ gives by default."""
    told = said(sys.executable, "-m", "support.many_workers", "1000", "0")
    assert told == {"ready": 1000, "why": {}, "alive": True}
