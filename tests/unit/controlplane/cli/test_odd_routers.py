"""Servers that do not answer as a Baton router does: a line for each, and nobody's traceback."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from controlplane.cli.main import run

MODELS = b'{"data":[{"id":"m"}]}'
WORD = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
END = b"data: [DONE]\n\n"
NOBODY = "a mistake of Baton's"


class Odd(BaseHTTPRequestHandler):
    url = ""
    models = MODELS
    cluster = b"{}"
    streams: tuple[bytes, ...] = ()
    """One for each turn."""

    def do_GET(self) -> None:
        self._say(self.models if self.path == "/v1/models" else self.cluster)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        stream, *rest = self.streams
        type(self).streams = tuple(rest)
        self._say(stream)

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def odd() -> Iterator[type[Odd]]:
    class Router(Odd):
        """Of one test."""

    with HTTPServer(("127.0.0.1", 0), Router) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        Router.url = f"http://127.0.0.1:{server.server_port}"
        yield Router
        server.shutdown()
        thread.join()


class Chat:
    """In a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, router: type[Odd], *turns: str) -> tuple[int, str, list[str]]:
        self._monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*turns, ""])))
        code = run(["chat", "--url", router.url])
        shown = self._capsys.readouterr()
        return code, shown.out, shown.err.splitlines()


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(monkeypatch, capsys)


DEEP = b"[" * 100_000
ODD_MODELS = [b'{"data":[{}]}', b'{"data":5}', b"[]", b"null", DEEP]


@pytest.mark.parametrize("models", ODD_MODELS, ids=lambda said: said[:16].decode())
def test_a_list_of_models_that_is_none_is_one_line(
    odd: type[Odd], chat: Chat, models: bytes
) -> None:
    odd.models = models
    code, _, said = chat(odd, "hello")
    assert (code, len(said)) == (1, 1)
    assert "did not answer" in said[0]


ODD_EVENTS = [
    b"[1]",
    b"null",
    b'{"choices":null}',
    b'{"choices":[{"delta":5}]}',
    b'{"choices":[{"delta":{"content":5}}]}',
    b'{"choices":[],"usage":{"completion_tokens":"x"}}',
    b'{"choices":[],"usage":{"completion_tokens":1,"prompt_tokens_details":5}}',
    b'{"error":"boom"}',
    b'{"choices":[{"delta":{"content":"\\ud800"}}]}',
    b"\xff",
    DEEP,
]


@pytest.mark.parametrize("event", ODD_EVENTS, ids=lambda said: said[:60].decode(errors="replace"))
def test_a_stream_that_is_none_is_one_line_and_the_conversation_goes_on(
    odd: type[Odd], chat: Chat, event: bytes
) -> None:
    odd.streams = (b"data: " + event + b"\n\n" + END, WORD + END)
    code, shown, said = chat(odd, "hello", "again")
    assert (code, shown, len(said)) == (1, "Hi\n", 2)
    assert said[0].startswith("baton chat: no event of a Baton router's stream: ")


@pytest.mark.parametrize(
    ("stream", "shown"), [(b"", ""), (WORD, "Hi\n"), (WORD + b"data: ", "Hi\n")]
)
def test_an_answer_that_is_cut_off_is_none(
    odd: type[Odd], chat: Chat, tmp_path: Path, stream: bytes, shown: str
) -> None:
    odd.streams = (stream, WORD + END)
    saved = tmp_path / "said.json"
    code, out, said = chat(odd, "hello", "again", f"/save {saved}")
    assert (code, out, len(said)) == (1, f"{shown}Hi\n", 2)
    assert json.loads(saved.read_text())["messages"][0]["content"] == "again"


@pytest.mark.parametrize("name", ["a\0b", "~nobody-of-that-name/said.json", "/nowhere/said.json"])
def test_a_file_that_cannot_be_is_one_line_and_the_conversation_goes_on(
    odd: type[Odd], chat: Chat, name: str
) -> None:
    odd.streams = (WORD + END, WORD + END)
    code, shown, said = chat(odd, "hello", f"/save {name}", "again")
    assert (code, shown, len(said)) == (1, "Hi\nHi\n", 2)
    assert NOBODY not in said[0]


@pytest.mark.parametrize(
    "cluster", [b"[]", b'{"workers":5}', b'{"workers":[5]}', b'{"workers":[{"id":1}]}', b"null"]
)
def test_a_cluster_that_is_none_is_one_line(
    odd: type[Odd], capsys: pytest.CaptureFixture[str], cluster: bytes
) -> None:
    odd.cluster = cluster
    assert run(["status", "--url", odd.url]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "did not answer as a Baton router does: " in said[0]
