"""What a machine has: `python -m tools.first_gpu.versions OUT`; one row, and files in OUT.

Raises nothing for what is not there: that is what it says.
"""

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.record import machine
from bench.row import Row, tell

PACKAGES = ("torch", "triton", "numpy", "transformers", "flashinfer-python", "nvidia-nccl-cu13")


def main() -> int:
    out = Path(sys.argv[1])
    is_there = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if is_there else "no GPU"
    facts = {
        **machine(),
        "gpu": gpu,
        "capability": torch.cuda.get_device_capability() if is_there else None,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "tools": {name: shutil.which(name) for name in ("gcc", "compute-sanitizer", "ncu", "nsys")},
    }
    (out / "versions.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "nvidia-smi.txt").write_text(_nvidia_smi())
    said = f"{gpu}, torch {torch.__version__}, triton {_version('triton')}, {facts['commit']}"
    tell(Row(part="versions", result=said))
    return 0


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
