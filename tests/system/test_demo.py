"""`make demo` on the shipped model, as a newcomer sees it."""

import os
import subprocess
import sys

import pytest

from controlplane.checkout import ROOT, shipped_model
from tools.python_path import python_path

WEIGHTS = shipped_model() / "model.safetensors"


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no shipped model in this checkout")
def test_the_demo_moves_blocks_reuses_the_prefix_and_answers_right() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.demo"],
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for shown in ("ribbon", "stable", "route", "prefill-", "moved", "transport", "exposed"):
        assert shown in demo.stdout
    assert demo.stdout.rstrip().endswith("Everything stopped.")
