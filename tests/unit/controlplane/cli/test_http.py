import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from controlplane.cli.main import run

asked: list[tuple[str, str | None]] = []


class _Router(BaseHTTPRequestHandler):
    """Refuses whatever it is asked, and notes which key came with it."""

    def do_GET(self) -> None:
        asked.append((self.path, self.headers["authorization"]))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are in `asked`."""


@contextmanager
def router() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Router) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("command", "path"), [("status", "/cluster"), ("chat", "/v1/models")])
@pytest.mark.parametrize("keys", ["one", " one, two"])
def test_the_commands_send_the_first_key_of_the_environment(
    command: str, path: str, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.clear()
    monkeypatch.setenv("BATON_API_KEY", keys)
    with router() as url:
        assert run([command, "--url", url]) != 0
    assert asked == [(path, "Bearer one")]
