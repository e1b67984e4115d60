"""`baton chat` as people use it: in a pipe and in a terminal, with what goes wrong there."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.cluster import ROOT, Cluster
from support.eventually import eventually

from tools.make_checkpoint import Shape, make_checkpoint
from tools.python_path import python_path

pytestmark = pytest.mark.system
CHAT = (sys.executable, "-m", "controlplane.cli.main", "chat")
CONTEXT = 256


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = tmp_path_factory.mktemp("checkpoints") / "noise"
    make_checkpoint(path, Shape(context=CONTEXT))
    with Cluster(checkpoint=path, prefill=0, decode=1) as cluster:
        yield cluster


def test_a_full_context_is_said_and_the_conversation_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    saved, again = tmp_path / "said.json", tmp_path / "again.json"
    long = "word " * CONTEXT
    turns = ("hello", long, f"/save {saved}", "/clear", "hello again", f"/save {again}")
    chat = _piped(cluster, *turns)
    assert chat.returncode == 1
    assert "the context is full: /clear begins anew" in chat.stderr
    assert chat.stderr.splitlines()[-1] == "baton chat: 1 of the turns had no answer"
    assert [message["content"] for message in _said(saved)[::2]] == ["hello"]
    assert [message["content"] for message in _said(again)[::2]] == ["hello again"]


def test_a_system_prompt_is_set_and_kept_when_the_conversation_is_cleared(
    cluster: Cluster, tmp_path: Path
) -> None:
    saved = tmp_path / "said.json"
    chat = _piped(cluster, "/system Be brief.", "hello", "/clear", f"/save {saved}")
    assert chat.returncode == 0, chat.stderr
    assert _said(saved) == [{"role": "system", "content": "Be brief."}]


def test_a_saved_conversation_never_replaces_a_file(cluster: Cluster, tmp_path: Path) -> None:
    there = tmp_path / "letter.txt"
    there.write_text("dear")
    chat = _piped(cluster, f"/save {there}")
    assert (chat.returncode, there.read_text()) == (1, "dear")
    assert "is there already" in chat.stderr


def test_an_unknown_command_is_said_and_a_doubled_slash_is_text(
    cluster: Cluster, tmp_path: Path
) -> None:
    saved = tmp_path / "said.json"
    chat = _piped(cluster, "/bye", "//bye", f"/save {saved}")
    assert "/bye: is not /clear" in chat.stderr
    assert [message["content"] for message in _said(saved)[::2]] == ["/bye"]


@pytest.mark.parametrize("line", [b"caf\xff\n", b"\xed\xa0\x80\n"])
def test_bytes_that_are_no_text_are_one_line_and_an_exit_code(
    cluster: Cluster, line: bytes
) -> None:
    chat = subprocess.run(
        _chat(cluster), input=line, capture_output=True, timeout=60, env=_environment()
    )
    assert chat.returncode == 1
    assert chat.stderr.startswith(b"baton chat: the input is not UTF-8 text\n")


def test_a_terminal_without_the_characters_shows_question_marks(cluster: Cluster) -> None:
    env = {**_environment(), "PYTHONIOENCODING": "ascii"}
    chat = subprocess.run(
        _chat(cluster), input=b"hello\n", capture_output=True, timeout=60, env=env
    )
    assert (chat.returncode, chat.stderr) == (0, b"")


def test_a_reader_that_goes_away_is_no_traceback(cluster: Cluster) -> None:
    with subprocess.Popen(
        _chat(cluster), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=_environment(),
    ) as chat:  # fmt: skip
        assert chat.stdin is not None and chat.stdout is not None and chat.stderr is not None
        chat.stdout.close()
        chat.stdin.write(b"hello\n" * 3)
        chat.stdin.close()
        assert (chat.wait(60), chat.stderr.read()) == (141, b"")


def test_a_stdout_that_is_closed_is_for_nobody(cluster: Cluster) -> None:
    chat = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *_chat(cluster)], input=b"hello\n",
        stderr=subprocess.PIPE, timeout=60, env=_environment(),
    )  # fmt: skip
    assert (chat.returncode, chat.stderr) == (0, b"")


def test_lines_pasted_into_a_terminal_are_one_turn(cluster: Cluster, tmp_path: Path) -> None:
    saved = tmp_path / "said.json"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        _chat(cluster), stdin=theirs, stdout=theirs, stderr=theirs, env=_environment()
    ) as chat:
        os.close(theirs)
        screen = bytearray()
        _await_prompt(ours, screen)
        os.write(ours, b"first line\nsecond line\n")
        _await_prompt(ours, screen)
        os.write(ours, f"/save {saved}\n".encode())
        _await_prompt(ours, screen)
        os.write(ours, b"\x04")
        assert chat.wait(60) == 0, screen.decode(errors="replace")
    os.close(ours)
    assert [message["role"] for message in _said(saved)] == ["user", "assistant"]
    assert _said(saved)[0]["content"] == "first line\nsecond line"


def test_a_router_that_is_not_there_is_one_line() -> None:
    chat = subprocess.run(
        [*CHAT, "--url", "http://127.0.0.1:1"], input="hi\n", capture_output=True, text=True,
        timeout=60, env=_environment(),
    )  # fmt: skip
    assert chat.returncode == 1
    assert chat.stderr.startswith("baton chat: no answer from http://127.0.0.1:1")
    assert len(chat.stderr.splitlines()) == 1


def _piped(cluster: Cluster, *turns: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _chat(cluster), input="\n".join([*turns, ""]), capture_output=True, text=True,
        timeout=60, env=_environment(),
    )  # fmt: skip


def _chat(cluster: Cluster) -> Sequence[str]:
    return [*CHAT, "--url", cluster.base_url, "--max-tokens", "3", "--temperature", "0"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": python_path(ROOT), "TERM": "dumb"}


def _said(file: Path) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = json.loads(file.read_text())["messages"]
    return messages


def _await_prompt(terminal: int, screen: bytearray) -> None:
    """Until a prompt is shown that nothing follows."""
    screen.clear()

    def shown() -> bool:
        screen.extend(os.read(terminal, 4096))
        return screen.endswith(b"> ")

    eventually(shown, 60, "a prompt")
