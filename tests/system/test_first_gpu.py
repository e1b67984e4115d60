"""The first hour on a GPU's machine, shown on one without: from nothing but wheels.

The Python beneath has torch, Triton, NumPy and what torch itself needs, and no registry. One stage
stands for all, and one kernel for what is tuned: each other stage takes half a minute to a minute
of a processor by `tools/first_gpu.sh STAGE OUT --toy`.
"""

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

from bench.row import told
from tools.first_gpu.wheels import present, requirements_of
from tools.python_path import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
STAGE_S = 600.0
"""It takes a minute of a machine that is not busy, and many of one that is."""
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make gpu-wheels` lays them; skips without a registry."""
    folder = tmp_path_factory.mktemp("wheels")
    made = [sys.executable, "-m", "tools.first_gpu.wheels", "--python", THIS, "--out", str(folder)]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"no wheels: {done.stderr[-300:]}")
    return folder / THIS


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with what an image for torch has, and pip."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in sorted(present(requirements_of, python=THIS)):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top != ".." and top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def first_gpu(
    stage: str, out: Path, *, plain: Path, wheels: Path
) -> "subprocess.CompletedProcess[str]":
    """With no path, no home and no registry of ours."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": "/nonexistent", "PIP_CONFIG_FILE": os.devnull,
        "PYTHON": str(plain), "WHEELS": str(wheels), "FIRST_GPU_ENV": str(out.parent / "env"),
    }  # fmt: skip
    return subprocess.run(
        [ROOT / "tools" / "first_gpu.sh", stage, out, "--toy"], cwd="/", env=environment,
        capture_output=True, text=True, timeout=STAGE_S,
    )  # fmt: skip


def test_a_stage_runs_where_only_torch_and_the_wheels_are(
    plain: Path, wheels: Path, out: Path
) -> None:
    done = first_gpu("check", out, plain=plain, wheels=wheels)
    table = (out / "check.txt").read_text() if done.returncode in (0, 1) else ""
    assert done.returncode == 0, table + done.stderr[-2000:]
    assert done.stdout.endswith(table), "the table is the last thing said"
    kept = json.loads((out / "check.json").read_text())
    logs = {file.stem for file in (out / "logs" / "check").glob("*.log")}
    assert kept["rows"] and set(kept["took_s"]) == logs


def test_a_kernel_is_tuned_into_a_table_of_what_beats_the_default(tmp_path: Path) -> None:
    command = ["-m", "tools.first_gpu.tuned", str(tmp_path), "--kernel", "linear", "--toy"]
    done = subprocess.run(
        [sys.executable, *command, "--seconds", "60"], cwd=ROOT, capture_output=True, text=True,
        timeout=STAGE_S,
    )  # fmt: skip
    rows = list(told(done.stdout))
    assert done.returncode == 0 and len(rows) == 6, done.stderr[-2000:]
    assert all(row.part.startswith("linear") and "cuBLAS" in row.result for row in rows)
    assert json.loads((tmp_path / "toy.json").read_text()) == {"entries": []}


def test_without_wheels_it_is_said_what_to_make(plain: Path, out: Path, tmp_path: Path) -> None:
    done = first_gpu("check", out, plain=plain, wheels=tmp_path)
    assert done.returncode == 2 and f"make gpu-wheels PY={THIS}" in done.stderr
