import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from engine.ops.cpu import build
from kvtransfer.native import library
from protocol.process.kernels import c_kernels


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a load that has not happened yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load.cache_clear()
    return tmp_path / "baton"


def fake_compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_kernels_are_built_once_into_the_cache(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, real = tmp_path / "runs", c_kernels.compiler()
    assert real is not None
    monkeypatch.setenv("CC", fake_compiler(tmp_path / "cc", f'echo >> {log}; exec {real} "$@"'))
    assert build.load().baton_panel() in (16, 32)
    build.load.cache_clear()
    build.load()
    assert log.read_text() == "\n"
    left = sorted(path.suffix for path in fresh.iterdir())
    assert left == [".sha256", ".so"], "drafts are cleaned up"


def test_other_flags_are_another_library() -> None:
    other = replace(build.KERNELS, flags=(*build.KERNELS.flags, "-O1"))
    assert other.library() != build.KERNELS.library()


def test_a_machine_without_a_compiler_has_no_kernels(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_kernels, "compiler", lambda: None)
    with pytest.raises(build.NoKernels, match="no C compiler"):
        build.load()


def test_a_compiler_that_fails_is_quoted(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", fake_compiler(tmp_path / "cc", "echo 'no such target' >&2; exit 1"))
    with pytest.raises(build.NoKernels, match="no such target"):
        build.load()
    assert list(fresh.iterdir()) == []


def test_the_kernels_share_the_openmp_of_torch() -> None:
    build.load()
    maps = Path(f"/proc/{os.getpid()}/maps").read_text().splitlines()
    libraries = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(libraries) == 1


def test_the_sources_compile_without_warnings(tmp_path: Path) -> None:
    found = shutil.which("gcc")
    if found is None:
        pytest.skip("no gcc")
    goal = str(tmp_path / "k.so")
    for each in (build.KERNELS, library.KERNELS):
        command = [found, *each.flags, "-Wall", "-Wextra", "-Werror", "-o", goal]
        sources = [str(path) for path in each.sources()]
        subprocess.run([*command, *sources, "-lm"], check=True, timeout=280)
