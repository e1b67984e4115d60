"""Nothing but text reaches a terminal; a pipe gets what came."""

import io

import pytest

from controlplane.cli.terminal import complain, write

NASTY = "\x1b]0;title\x07a\r\x9b2Jb\x7f\tc\nd\x00"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_mark_in_place_of_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    write(NASTY)
    assert terminal.getvalue() == "�]0;title�a��2Jb�\tc\nd�"


def test_a_pipe_gets_what_came(capsys: pytest.CaptureFixture[str]) -> None:
    write(NASTY)
    assert capsys.readouterr().out == NASTY


def test_a_complaint_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    complain("first\nsecond \x1b[2J")
    assert capsys.readouterr().err == "first second �[2J\n"
