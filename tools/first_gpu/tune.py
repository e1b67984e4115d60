"""Stage `tune`: launch parameters measured on this GPU, and the engine's steps once with them."""

from pathlib import Path

from tools.first_gpu.part import Part
from tools.first_gpu.profile import bench_part
from tools.first_gpu.stage import Stage

SECONDS = {"attention": 100, "linear": 150, "sample": 30, "step": 60}
"""Of ten minutes, by the kernel's name in `tools.tune`. `step` is of no kernel alone: whether a
step's kernels begin before those ahead of them end."""
TOY_SECONDS = 1
"""Only what is measured first: the interpreter takes seconds for it."""


def tune(out: Path, *, toy: bool) -> Stage:
    """One kernel after another: whoever measures is alone on the device."""
    tuned = [_tuning(kernel, out, toy=toy) for kernel in SECONDS]
    again = bench_part("engine", toy=toy, within_s=200, name="engine with the tables")
    return Stage(name="tune", waves=[*([part] for part in tuned), [again]])


def _tuning(kernel: str, out: Path, *, toy: bool) -> Part:
    seconds = TOY_SECONDS if toy else SECONDS[kernel]
    small = ["--toy"] if toy else []
    return Part(
        name=f"tune {kernel}",
        arguments=[
            "-m", "tools.first_gpu.tuned", str(out / "tuned"), "--kernel", kernel, "--vocab",
            "128256", "--seconds", str(seconds), *small,
        ],
        within_s=150 if toy else seconds + 30,
    )  # fmt: skip
