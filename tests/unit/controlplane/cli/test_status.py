"""What `baton status` makes of `/cluster`."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from controlplane.checkout import ROOT
from controlplane.cli.main import run
from tools.python_path import python_path

CLUSTER: dict[str, Any] = {
    "router": "router-0",
    "workers": [
        {
            "id": "decode-0",
            "state": "ready",
            "version": {"model": "org/m", "revision": "0e9e39f2", "text": "t"},
            "pid": 7,
            "transport": "tcp",
            "why": "",
            "running": 1,
            "waiting": 0,
            "blocks": {"total": 8, "free": 6, "cached": 2, "leased": 0},
            "speeds": {"prefill_tokens_per_s": 0.0, "decode_step_s": 0.0},
            "transports": [
                {"name": "tcp", "peer": "prefill-0", "why": "tcp reachable; not shm: elsewhere"},
                {"name": "shm", "peer": "prefill-1", "why": "shm reachable"},
            ],
        }
    ],
}


class Router(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(CLUSTER).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Router) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_slower_way_for_kv_than_configured_is_said_with_its_reason(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "decode-0: KV from prefill-0 by tcp: tcp reachable; not shm: elsewhere" in shown
    assert "prefill-1" not in shown


def test_who_serves_what_is_said_where_they_serve_several(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["status", "--url", url]) == 0
    assert "serves" not in capsys.readouterr().out
    (old,) = CLUSTER["workers"]
    new = old | {"id": "decode-1", "version": old["version"] | {"revision": "77777777"}}
    monkeypatch.setitem(CLUSTER, "workers", [old, new])
    assert run(["status", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "decode-0: serves org/m@0e9e39f2\n" in shown
    assert "decode-1: serves org/m@77777777\n" in shown


def test_json_is_what_the_router_answers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == CLUSTER


@pytest.mark.parametrize(
    ("redirect", "code", "says"),
    [("", 141, ""), (">/dev/full", 1, "baton status: could not write: No space left on device\n")],
)
def test_output_that_nobody_can_take_is_an_exit_code(
    url: str, redirect: str, code: int, says: str
) -> None:
    baton = [sys.executable, "-m", "controlplane.cli.main", "status", "--url", url]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *baton], stdout=writer, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)}, text=True, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, says)


def test_names_of_others_are_text_on_a_terminal(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLUSTER, "router", "\x1b[2J[/red]")
    assert run(["status", "--url", url]) == 0
    assert "router: �[2J[/red]" in capsys.readouterr().out
