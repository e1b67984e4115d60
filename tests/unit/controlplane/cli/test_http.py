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


VARIABLES = [
    ("HTTP_PROXY", "http://127.0.0.1:9"),
    ("HTTP_PROXY", "foo://bar"),
    ("ALL_PROXY", "socks5://127.0.0.1:9"),
    ("ALL_PROXY", "gopher://x"),
    ("NO_PROXY", "[::1"),
    ("SSL_CERT_FILE", "/nonexistent"),
]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of proxies and certificates set."""
    for name in {name for name, _ in VARIABLES} | {"HTTPS_PROXY", "SSL_CERT_DIR"}:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(("name", "value"), VARIABLES)
@pytest.mark.parametrize("command", [["status"], ["chat"]])
def test_this_machine_is_reached_without_what_the_environment_says_of_proxies(
    command: list[str], name: str, value: str, plain: pytest.MonkeyPatch
) -> None:
    asked.clear()
    plain.setenv(name, value)
    with router() as url:
        assert run([*command, "--url", url]) == 1
    assert len(asked) == 1


@pytest.mark.parametrize(("name", "value"), VARIABLES)
@pytest.mark.parametrize("command", ["status", "chat"])
def test_elsewhere_a_variable_that_cannot_be_followed_is_named_in_one_line(
    command: str,
    name: str,
    value: str,
    plain: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain.setenv(name, value)
    assert run([command, "--url", "http://router.invalid:1"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "no answer from http://router.invalid:1: " in said
    assert said.endswith(f"; the environment sets {name}")


@pytest.mark.parametrize("key", ["\u00fcn\u00ef", "two words", "tab\tkey", "good,b\u00e4d", " , "])
@pytest.mark.parametrize("command", ["up", "status", "chat"])
def test_a_key_that_no_header_carries_is_a_wrong_setting(
    command: str, key: str, plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain.setenv("BATON_API_KEY", key)
    assert run([command]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"baton {command}: api_key: the value given: ")
    assert key not in said
