"""Processes take turns at what there is one of, and a dead one keeps nobody waiting."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.gpu import ENVIRONMENT

from protocol.process.turns import take_turn

NAME = f"test of {os.getpid()}"


@contextmanager
def holder() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "support.turn_holder", NAME]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def not_ours(seconds: float) -> None:
    raise AssertionError("it waits")


def waiting(process: subprocess.Popen[str]) -> Callable[[float], None]:
    """The other one dies while this one waits."""

    def sleep(seconds: float) -> None:
        process.kill()
        process.wait(10)

    return sleep


def test_one_process_waits_while_another_has_its_turn_until_that_one_is_killed() -> None:
    with holder() as other:
        assert said(other) == "ours"
        with take_turn(NAME, patience_s=30, sleep=waiting(other)) as is_ours:
            assert is_ours and other.returncode == -9
    with take_turn(NAME, sleep=not_ours) as is_ours:
        assert is_ours


def test_a_turn_that_is_kept_too_long_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    times = iter(range(100))
    with (
        take_turn(NAME),
        take_turn(NAME + " other") as other,
        take_turn(NAME, patience_s=9, clock=lambda: next(times), sleep=id) as is_ours,
    ):
        assert other and not is_ours
    assert "went on without its turn" in caplog.text
    with take_turn(NAME, sleep=not_ours) as is_ours:
        assert is_ours
