"""What the batch-invariant mode promises, of whole models."""

import subprocess
import sys

import pytest
from support.gpu import ENVIRONMENT


@pytest.mark.long
def test_bits_do_not_depend_on_the_batch_the_chunks_or_who_computed_the_prompt() -> None:
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "support.invariant_model"]
    done = subprocess.run(
        command, env=environment, capture_output=True, timeout=240, check=False, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
