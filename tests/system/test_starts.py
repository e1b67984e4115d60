"""How a worker starts: phase by phase, and with what it built before at a fraction of the cost."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.eventually import START_S, eventually
from support.processes import Process, process
from support.redis_server import RedisServer, redis_server

from controlplane.checkout import shipped_model
from worker.reported.start_phases import PHASES

COMPILER = """#!/bin/sh
echo "$@" >> "{told}"
exec {compiler} "$@"
"""


def counting_compiler(folder: Path) -> tuple[Path, Path]:
    """A compiler, and the file in which it notes each time that it is run."""
    told, compiler = folder / "told", folder / "cc"
    found = next(one for name in ("cc", "gcc", "clang") if (one := shutil.which(name)))
    compiler.write_text(COMPILER.format(told=told, compiler=found))
    compiler.chmod(0o755)
    told.touch()
    return compiler, told


def cpu_s(worker: Process) -> float:
    """Of the process and of the children that it has waited for."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(redis: RedisServer, cache: Path, compiler: Path) -> Iterator[Process]:
    env = {"XDG_CACHE_HOME": str(cache), "CC": str(compiler)}
    flags = ("--model", str(shipped_model()), "--redis", redis.url, "--device", "cpu")
    with process("decode_worker", *flags, "--threads", "1", env=env) as worker:
        eventually(lambda: worker.events("started"), START_S, "the worker has started")
        yield worker


@pytest.mark.long
def test_a_start_with_what_was_built_before_costs_at_most_half(tmp_path: Path) -> None:
    compiler, told = counting_compiler(tmp_path)
    costs, compiled = [], []
    with redis_server() as redis:
        for _ in range(2):
            with started(redis, tmp_path / "cache", compiler) as worker:
                costs.append(cpu_s(worker))
                (event,) = worker.events("started")
                assert {f"{phase}_s" for phase in PHASES} <= event.keys()
            compiled.append(len(told.read_text().splitlines()))
    assert compiled[0] >= 2 and compiled[1] == compiled[0]
    assert costs[1] <= costs[0] / 2, costs
