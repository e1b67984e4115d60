"""An image's kernels: built ahead, and loaded where there is no compiler."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.source_tree import ROOT

from protocol.process.kernels.targets import TARGETS
from tools.prebuild import ALL, main

LOADS = """
from tools.prebuild import ALL
import torch
for kernels in ALL:
    print(kernels.load()._name)
"""
FOREIGN = "aarch64-linux-gnu-gcc"
ELF_MACHINE = slice(18, 20)
AARCH64 = (183).to_bytes(2, "little")


def test_every_kernel_of_the_tree_is_among_them() -> None:
    written = {path.parent for path in ROOT.glob("*/**/*.c") if ".venv" not in str(path)}
    written = {folder for folder in written if folder.relative_to(ROOT).parts[0] not in OTHERS}
    assert {kernels.folder for kernels in ALL} == written


OTHERS = ("tests", "tools", "bench", "build")


def test_an_unknown_target_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--target", "z80"])
    assert "invalid choice: 'z80'" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_all_of_this_machine_load_without_a_compiler(tmp_path: Path) -> None:
    assert main([str(tmp_path / "kernels")]) == 0
    mine = [each for each in TARGETS if each.machine == platform.machine()]
    assert len(list((tmp_path / "kernels").glob("*.so"))) == len(mine) * len(ALL)
    environment = {
        **os.environ,
        "BATON_KERNELS": str(tmp_path / "kernels"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": "/nowhere",
        "CC": "/nowhere/cc",
    }
    told = subprocess.check_output(
        [sys.executable, "-c", LOADS], env=environment, cwd=ROOT, text=True, timeout=120
    )
    assert {Path(line).parent for line in told.splitlines()} == {tmp_path / "kernels"}
    assert not (tmp_path / "cache").exists()


@pytest.mark.long
@pytest.mark.skipif(shutil.which(FOREIGN) is None, reason=f"no {FOREIGN}")
def test_all_are_built_for_aarch64_by_a_cross_compiler(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--target", "aarch64", "--compiler", FOREIGN]) == 0
    libraries = list(tmp_path.glob("*.so"))
    assert len(libraries) == len(ALL)
    assert {library.read_bytes()[ELF_MACHINE] for library in libraries} == {AARCH64}
