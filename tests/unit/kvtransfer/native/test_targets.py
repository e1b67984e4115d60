"""Copies and sums in C: right on every processor they are built for, and clean by sanitizers."""

import platform
import shutil
from pathlib import Path

import pytest
from support.sums_driver import build, cases, play

from protocol.process.kernels.c_kernels import compiler
from protocol.process.kernels.targets import TARGETS, Target, targets_here

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
NO_VECTORS = ("-march=x86-64",) if platform.machine() == "x86_64" else ("-U__ARM_NEON",)
VECTORS: list[tuple[str, ...]] = [("-march=native",), NO_VECTORS]
VECTORS += [one.flags for one in targets_here() if one.name == "x86-64-v3"]
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_copies_and_sums_are_right_on_every_processor(target: Target, tmp_path: Path) -> None:
    emulated = target.machine == "aarch64" and platform.machine() != "aarch64"
    if emulated and not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)):
        pytest.skip(f"no {ARM_COMPILER} and {ARM_EMULATOR}")
    if not emulated and target not in targets_here():
        pytest.skip("not of this processor")
    if emulated:
        program = _built(tmp_path, "-static", *target.flags, found=ARM_COMPILER)
        play([ARM_EMULATOR, program], list(cases(1, 250, hostile=False)))
    else:
        play([_built(tmp_path, *target.flags)], list(cases(1, 250, hostile=False)))


def test_copies_and_sums_are_right_without_vectors(tmp_path: Path) -> None:
    play([_built(tmp_path, *NO_VECTORS)], list(cases(2, 250, hostile=False)))


@pytest.mark.parametrize("vectors", VECTORS, ids=lambda flags: flags[0].removeprefix("-march="))
def test_nothing_is_touched_beyond_what_was_said(vectors: tuple[str, ...], tmp_path: Path) -> None:
    """Also of ranges, pieces and jobs that lie: every buffer is as long as was said."""
    sanitized = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    play([_built(tmp_path, *sanitized, *vectors)], list(cases(3, 300, hostile=True)))


def _built(folder: Path, *flags: str, found: str | None = None) -> Path:
    program = build(folder, "-O2", *flags, found=found)
    if program is None:
        pytest.skip(f"the compiler takes no {' '.join(flags)}")
    return program
