"""Stage `check`: what the machine has, whether the kernels are right, what dies with a source."""

from collections.abc import Sequence
from pathlib import Path

from tools.first_gpu.gpu_tests import gpu_test_files
from tools.first_gpu.part import Part
from tools.first_gpu.stage import Stage
from tools.python_path import ROOT

KILLS = "tests/contract/test_device_processes.py"
FORWARD = "bench.gpu.forward"
KILLED = {
    False: ["-m", "gpu", "-k", "killed and not (nccl or shm or tcp)"],
    True: ["-m", "not gpu", "-k", "copy_under_way and fake"],
}  # fmt: skip
"""By whether it is a toy's: over the fake device."""


def check(out: Path, *, toy: bool) -> Stage:
    """First what may leave the device unusable, then what is quick, then what compiles most."""
    small = ["--toy"] if toy else []
    bench = ["-m", "bench.gpu", "--only", "limits", *small]
    far = ["--pool-gib", "16", "--name", "far blocks"]
    alone = [
        Part(name="versions", arguments=["-m", "tools.first_gpu.versions", str(out)], within_s=60),
        _tests("killed_sources", [KILLS], KILLED[toy], within_s=150),
        Part(name="limits", arguments=bench, within_s=60),
    ]
    forward = Part(name="forward", arguments=["-m", FORWARD, *small], within_s=90)
    far_blocks = Part(name="far_blocks", arguments=["-m", FORWARD, *far, *small], within_s=90)
    checked = ["memcheck", FORWARD, "--pool-gib", "5", "--name", "under memcheck", *small]
    memcheck = ["-m", "tools.first_gpu.memcheck", *checked]
    # A toy's pool has no far end.
    waves = [*([part] for part in alone), [forward] if toy else [forward, far_blocks]]
    return Stage(
        name="check",
        waves=[
            *waves,
            _all_tests(toy=toy),
            [Part(name="memcheck", arguments=memcheck, within_s=150)],
        ],
    )


def _all_tests(*, toy: bool) -> list[Part]:
    """A file each, so that they compile side by side; a toy's are found, and skipped."""
    files = [str(file.relative_to(ROOT)) for file in gpu_test_files()]
    if toy:
        return [_tests("gpu tests", files, ["--may-skip", "-m", "gpu"], within_s=150)]
    return [
        _tests(Path(file).stem.removeprefix("test_"), [file], ["-m", "gpu"], within_s=300)
        for file in files
    ]


def _tests(name: str, files: Sequence[str], chosen: Sequence[str], *, within_s: float) -> Part:
    arguments = ["-m", "tools.first_gpu.gpu_tests", name, *chosen, *files]
    return Part(name=name, arguments=arguments, within_s=within_s)
