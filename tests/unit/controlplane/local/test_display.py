import io

import pytest
from rich.console import Console

from controlplane.local.child import ChildDied, ChildStarted
from controlplane.local.display import Display
from controlplane.local.log_line import parse_line


@pytest.fixture
def err() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(err: io.StringIO) -> Display:
    display = Display(err=Console(file=err, force_terminal=False, width=200))
    display.begin("Baton starts")
    display.on_event(ChildStarted(child="decode-0", pid=7, restarts=0))
    return display


def _log(display: Display, text: str) -> None:
    display.on_event(parse_line("decode-0", text))


def test_progress_is_shown_once_a_quarter(display: Display, err: io.StringIO) -> None:
    for done in range(0, 101, 5):
        _log(display, f'{{"event": "loading", "level": "info", "done": {done}, "total": 100}}')
    shown = [line for line in err.getvalue().splitlines() if "weights" in line]
    assert shown == [f"decode-0: weights {part}%" for part in (25, 50, 75, 100)]


def test_routine_log_lines_are_not_shown_and_warnings_are(
    display: Display, err: io.StringIO
) -> None:
    _log(display, '{"event": "placed", "level": "info"}')
    _log(display, '{"event": "redis", "level": "warning", "time": 1.5, "state": "lost"}')
    assert "placed" not in err.getvalue()
    assert "decode-0: redis, state lost\n" in err.getvalue()


def test_warnings_are_not_shown_while_everything_stops(display: Display, err: io.StringIO) -> None:
    display.stop("stopping")
    _log(display, '{"event": "router gone", "level": "warning"}')
    assert "router gone" not in err.getvalue()


def test_everything_is_shown_when_asked_for(display: Display, err: io.StringIO) -> None:
    display.verbose = True
    _log(display, '{"event": "placed", "level": "info"}')
    assert "placed" in err.getvalue()


def test_a_death_says_how_and_when_it_comes_back(display: Display, err: io.StringIO) -> None:
    display.on_event(ChildDied(child="decode-0", exit_code=-9, delay_s=0.1))
    display.on_event(ChildStarted(child="decode-0", pid=8, restarts=1))
    assert "decode-0: died (signal 9); starting it again in 0.1 s" in err.getvalue()
    assert "decode-0: started again, pid 8" in err.getvalue()


def test_being_ready_is_one_line_with_the_address_and_one_to_try(
    display: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    display.ready(url="http://127.0.0.1:8000", model="tiny")
    serves, attempt = capsys.readouterr().out.splitlines()
    assert serves.startswith("Baton serves tiny at http://127.0.0.1:8000 ")
    assert attempt.startswith("Try: curl http://127.0.0.1:8000/v1/chat/completions")


def test_a_terminal_shows_a_row_for_each_child() -> None:
    err = io.StringIO()
    display = Display(err=Console(file=err, force_terminal=True, width=100))
    display.begin("Baton starts")
    display.on_event(ChildStarted(child="prefill-0", pid=7, restarts=0))
    display.on_event(parse_line("prefill-0", '{"event": "loading", "done": 1, "total": 2}'))
    display.close()
    assert "prefill-0" in err.getvalue()
    assert "━" in err.getvalue()
