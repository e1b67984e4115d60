"""A step on a device with the kernels that a GPU runs, without one.

Triton decides at import whether it interprets, so the comparison runs in a process of its own.
"""

import subprocess
import sys

from support.gpu import ENVIRONMENT


def test_steps_launched_ahead_with_the_kernels_give_the_tokens_of_their_twins() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.interpreted_runner"],
        env={**ENVIRONMENT, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-3000:]
