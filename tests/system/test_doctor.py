"""`baton doctor` as it is run: alone, between two processes, between two network namespaces."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from support.processes import ROOT

from tools.python_path import python_path

pytestmark = pytest.mark.system

COMMAND = (sys.executable, "-m", "controlplane.cli.main", "doctor")
WITHIN_S = 60.0
"""Far above the few seconds it takes on a machine that is not busy."""
INVITATION = re.compile(r"BATON_TOKEN=(\S+) baton doctor --peer \S+:(\d+)")


def doctor(
    *flags: str, inside: Sequence[str] = (), token: str = ""
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*inside, *COMMAND, *flags],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        cwd=ROOT,
        env=_environment(token),
        check=False,
    )


@contextmanager
def serving(*flags: str, inside: Sequence[str] = ()) -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [*inside, *COMMAND, "--serve", "--json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=_environment(""),
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def invitation(child: "subprocess.Popen[str]") -> tuple[str, int]:
    """Token and port, as the serving doctor prints them."""
    assert child.stderr is not None
    for line in child.stderr:
        if found := INVITATION.search(line):
            return found[1], int(found[2])
    raise AssertionError("the doctor ended without an invitation")


def report_of(child: "subprocess.Popen[str]") -> dict[str, Any]:
    out, _ = child.communicate(timeout=WITHIN_S)
    answer: dict[str, Any] = json.loads(out)
    return answer


def severities(report: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["severity"] for finding in report["findings"]}


def _environment(token: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    return {**clean, "PYTHONPATH": python_path(ROOT), **({"BATON_TOKEN": token} if token else {})}


def test_a_machine_alone_is_measured_over_shared_memory_and_tcp() -> None:
    began = time.monotonic()
    ran = doctor("--json")
    took_s = time.monotonic() - began
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    (way,) = report["ways"]
    assert way["uses"] == "shm"
    measured = {plane["name"]: plane["measured"] for plane in way["planes"] if plane["measured"]}
    assert set(measured) == {"shm", "tcp"}
    assert all(one["gb_per_s"] > 0 and one["p99_us"] >= one["p50_us"] for one in measured.values())
    assert severities(report)["shm-here"] == "ok"
    assert all(f["remedy"] for f in report["findings"] if f["severity"] != "ok")
    assert took_s < 30  # under ten seconds by itself; other tests may run beside it


def test_the_report_for_people_says_what_moves_kv_and_what_does_not() -> None:
    ran = doctor()
    assert ran.returncode == 0, ran.stderr
    assert "would move by shm" in ran.stdout
    assert re.search(r"^  cuda_ipc +(no|possible) ", ran.stdout, re.M)


def test_two_doctors_measure_the_way_between_them_in_both_directions() -> None:
    with serving("--host", "127.0.0.1") as server:
        token, port = invitation(server)
        ran = doctor("--peer", f"127.0.0.1:{port}", "--json", token=token)
        assert ran.returncode == 0, ran.stderr
        visited, served = json.loads(ran.stdout), report_of(server)
    for report in (visited, served):
        assert len(report["ways"]) == 3
        assert report["peer"]["host"] == report["host"]
        found = severities(report)
        assert found["place"] == found["tcp-from-peer"] == found["tcp-to-peer"] == "ok"
    assert server.returncode == 0


def test_whoever_does_not_know_the_token_gets_nothing_and_the_next_one_is_served() -> None:
    with serving("--host", "127.0.0.1") as server:
        token, port = invitation(server)
        ran = doctor("--peer", f"127.0.0.1:{port}", token="guessed")
        assert ran.returncode == 1
        assert "refused: the token is another" in ran.stderr
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        assert doctor("--peer", f"127.0.0.1:{port}", token=token).returncode == 0
        server.wait(timeout=WITHIN_S)


def test_a_doctor_that_nobody_visits_ends_by_itself() -> None:
    ran = doctor("--serve", "--host", "127.0.0.1", "--wait-s", "0.2")
    assert ran.returncode == 1
    assert "nobody with the token came" in ran.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--peer", "127.0.0.1:1"), "go together"),
        (("--serve", "--peer", "127.0.0.1:1"), "--serve on one machine"),
        (("--peer", "nowhere", "--token", "t"), "peer: 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line_and_costs_no_measurement(flags: tuple[str, ...], says: str) -> None:
    ran = doctor(*flags)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert says in ran.stderr and not ran.stdout


@pytest.fixture
def two_namespaces() -> Iterator[tuple[str, str]]:
    """Two hosts as far as the network goes: 10.99.7.1 and 10.99.7.2, joined by a wire."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    names = (f"baton-a-{os.getpid()}", f"baton-b-{os.getpid()}")
    wires = (f"bda{os.getpid() % 100_000}", f"bdb{os.getpid() % 100_000}")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for number, (name, wire) in enumerate(zip(names, wires, strict=True), start=1):
            _ip("link", "set", wire, "netns", name)
            _ip("-n", name, "addr", "add", f"10.99.7.{number}/24", "dev", wire)
            _ip("-n", name, "link", "set", wire, "up")
            _ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(names)
        pytest.skip(f"this machine makes no network namespaces: {error}")
    yield names
    _remove(names)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=10)


def test_between_two_network_namespaces_tcp_moves_kv_and_shared_memory_says_why_not(
    two_namespaces: tuple[str, str],
) -> None:
    one, other = (("ip", "netns", "exec", name) for name in two_namespaces)
    with serving(inside=one) as server:
        token, port = invitation(server)
        ran = doctor("--peer", f"10.99.7.1:{port}", "--json", inside=other, token=token)
        assert ran.returncode == 0, ran.stderr
        served = report_of(server)
    for report in (json.loads(ran.stdout), served):
        for way in report["ways"][1:]:
            planes = {plane["name"]: plane for plane in way["planes"]}
            assert way["uses"] == "tcp"
            assert planes["shm"]["why"] == "same host, but another network namespace"
        place = next(f for f in report["findings"] if f["name"] == "place")
        assert "hostNetwork: true" in place["remedy"]
