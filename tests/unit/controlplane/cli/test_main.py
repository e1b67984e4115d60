import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from controlplane.checkout import ROOT
from controlplane.cli import status
from controlplane.cli.main import run
from protocol.process.version import baton_version


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"baton {baton_version()}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("up", "chat", "status"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["fly"], "unknown command: fly"),
        (["up", "--no-such", "1"], "unknown setting: --no-such"),
        (["up", "--model", "/nowhere"], "/nowhere: no such folder"),
        (["status", "--url", "ftp://x"], "url: 'ftp://x'"),
        (["status", "--url", "http://127.0.0.1:1"], "no answer from http://127.0.0.1:1"),
        (["chat", "--url", "http://127.0.0.1:1"], "no answer from http://127.0.0.1:1"),
        (["chat", "--url", "http://[::1"], "url: 'http://[::1': must be an address"),
        (["chat", "--url", "http://"], "url: 'http://': must be an address"),
        (["status", "--url", "http://x:99999"], "must be an address"),
        (
            ["chat", "--api-key", "sécret"],
            "api_key: the value given: must be printable ASCII",
        ),
        (
            ["status", "--api-key", "a\nb"],
            "api_key: the value given: must be printable ASCII",
        ),
        (["chat", "--system", "a\udcff"], "system: 'a\\udcff': must be UTF-8 text"),
        (["up", "--served-name", "a\udcff"], "served_name: 'a\\udcff': must be UTF-8 text"),
        (["chat", "--temperature", "nan"], "temperature: 'nan': "),
        (["\x1b[2J\n"], "unknown command: \ufffd[2J"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) != 0
    shown = capsys.readouterr()
    assert says in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_a_mistake_of_ours_is_one_line_that_names_a_file_with_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(status, "get_json", lambda *_: 1 / 0)
    assert run(["status"]) == 1
    (report,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(report) in said
    assert "Traceback" in report.read_text()


def test_a_model_that_is_not_there_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--model", "/nowhere"]) == 3
    assert "a model by name is ORG/NAME[@REVISION]" in capsys.readouterr().err


def test_the_supervisor_does_not_import_torch() -> None:
    program = "import controlplane.local.up, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
