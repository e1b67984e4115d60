"""Kernels where the system gives a process no home, as a container for any user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.runner.gpu import cuda, opening
from protocol.process.triton_cache import VARIABLE

COMPILES = """
import os, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kvtransfer.kernels.copy import copy_kernel
from protocol.process.triton_cache import VARIABLE, use_own_triton_cache

CONSTANTS = {"COPIES": False, "TILE": 2048}
SIGNATURE = {name: "*i64" for name in ("table", "sums")}
SIGNATURE |= {"target": "i64", "source": "i64", "num_ranges": "i32"}
SIGNATURE |= {name: "constexpr" for name in CONSTANTS}

def compiled(arch):
    names = [one.name for one in copy_kernel.params]
    source = ASTSource(
        fn=copy_kernel, signature={name: SIGNATURE[name] for name in names}, constexprs=CONSTANTS
    )
    triton.compile(source, target=GPUTarget("cuda", arch, 32), options={})

use_own_triton_cache()
if sys.argv[1] == "stranger":  # who may not even read where Python lies: all is imported before
    compiled(80)
    os.setgid(54321)
    os.setuid(54321)
    del os.environ[VARIABLE]
    use_own_triton_cache()
compiled(90)
print(triton.knobs.cache.dir)
"""


@pytest.mark.parametrize(
    ("user", "home"),
    [
        ("ours", {"HOME": "/proc"}),
        pytest.param(
            "stranger", {},
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another"),
        ),
    ],
    ids=["a home that cannot be written", "a user that no passwd knows"],
)  # fmt: skip
def test_kernels_are_compiled_without_a_home(
    user: str, home: dict[str, str], tmp_path: Path
) -> None:
    """Findings A and J of the first reading."""
    hidden = ("HOME", "XDG_CACHE_HOME", VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    ran = subprocess.run(
        [sys.executable, str(script), user], env=environment | home, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).name.startswith("baton-triton-")


def test_who_opens_a_gpu_has_that_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "CudaDevice", lambda index: None)
    opening.open_device("cuda")
    assert (tmp_path / "kernels").is_dir()
