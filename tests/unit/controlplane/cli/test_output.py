"""What `baton` does when its output has no reader, no room, or nobody gave it one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.checkout import ROOT
from tools.python_path import python_path

FULL = Path("/dev/full")
NO_ROOM = "could not write: No space left on device\n"
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")


def _run(*argv: str, redirect: str = "", unbuffered: str = "1") -> tuple[int, str]:
    """Exit code and stderr, beside a reader that has gone before anything was written."""
    env = {**os.environ, "PYTHONPATH": python_path(ROOT), "PYTHONUNBUFFERED": unbuffered}
    baton = [sys.executable, "-m", "controlplane.cli.main", *argv]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirect}', "sh", *baton], env=env, stdout=writer,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_traceback(unbuffered: str) -> None:
    assert _run("--version", unbuffered=unbuffered) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str) -> None:
    ended = _run("--help", redirect=f">{FULL}", unbuffered=unbuffered)
    assert ended == (1, f"baton: {NO_ROOM}")


@pytest.mark.parametrize(
    ("redirect", "ended"),
    [
        ("", (141, "")),
        (f">{FULL}", (1, f"baton chat: {NO_ROOM}")),
        (">&- 2>&-", (0, "")),
    ],
)
def test_help_of_a_command_likewise(redirect: str, ended: tuple[int, str]) -> None:
    assert _run("chat", "--help", redirect=redirect) == ended


@pytest.mark.parametrize("redirect", [f"2>{FULL}", "2>&-", "2>&1"])
def test_what_is_wrong_is_an_exit_code_though_nobody_can_be_told(redirect: str) -> None:
    assert _run("fly", redirect=redirect) == (2, "")
