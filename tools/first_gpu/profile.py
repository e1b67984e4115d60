"""Stage `profile`: an 8-billion-parameter shape beside its limits, and where its time goes."""

from pathlib import Path

from tools.first_gpu.part import Part
from tools.first_gpu.stage import Stage


def profile(out: Path, *, toy: bool) -> Stage:
    """The engine's steps first; peers have what is left."""
    return Stage(
        name="profile",
        waves=[
            [bench_part("engine", toy=toy, within_s=330)],
            [bench_part("attention", toy=toy, within_s=90)],
            [bench_part("peers", toy=toy, within_s=300)],
        ],
    )


def bench_part(only: str, *, toy: bool, within_s: float, name: str = "") -> Part:
    """The limits are measured in the same process: shares are of them."""
    small = ["--toy"] if toy else []
    budget = ["--within-s", f"{within_s:.0f}"]
    return Part(
        name=name or only, arguments=["-m", "bench.gpu", "--only", only, *budget, *small],
        within_s=within_s,
    )  # fmt: skip
