"""Stage `serve`: workers on one GPU, hand-overs between them, and the planes that carry those."""

from pathlib import Path

from tools.first_gpu.part import Part
from tools.first_gpu.profile import bench_part
from tools.first_gpu.stage import Stage


def serve(out: Path, *, toy: bool) -> Stage:
    """First that tokens are right, then how soon they come, then how fast bytes go."""
    planes = ["--kind", "fake", "--total-mib", "1", "--block-kib", "256"] if toy else []
    served = ["-m", "bench.gpu.serving", *(["--toy"] if toy else [])]
    return Stage(
        name="serve",
        waves=[
            [bench_part("hand_over", toy=toy, within_s=150)],
            [Part(name="serving", arguments=served, within_s=280)],
            [Part(name="planes", arguments=["-m", "bench.device", *planes], within_s=180)],
        ],
    )
