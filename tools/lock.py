"""Pins what the images install, with hashes: `make lock` writes requirements/.

    python -m tools.lock                  resolve anew, then check
    python -m tools.lock --check          only that every pin has wheels where images are built

`base.lock` is what the router and the workers need but torch, `torch-cpu.lock` and
`torch-cuda.lock` torch and what it brings, at the versions of the first. Both are resolved from
`pyproject.toml` by uv, for Python 3.11 to 3.13, x86-64 and aarch64. CPU builds of torch are not on
PyPI: `--torch-index` says where they are. Pins that stand are kept unless `--upgrade`.
"""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tools.python_path import ROOT

LOCKS = ROOT / "requirements"
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("x86_64-manylinux_2_31", "aarch64-manylinux_2_31")
PYPI = "https://pypi.org/simple"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
TORCH = "2.13.0"
"""As constraints-cpu.txt pins it; its build on PyPI is for CUDA 13."""
HEADER = "# Written by `make lock` from pyproject.toml; installed with pip's --require-hashes.\n"
WITHIN_S = 300.0


class LockFailed(Exception):
    """uv found no set of versions, or no wheel; what it said."""


def main(argv: Sequence[str]) -> int:
    asked = _arguments(argv)
    try:
        if not asked.check:
            LOCKS.mkdir(exist_ok=True)
            _lock("base", dependencies(), asked, index=asked.index)
            _lock("torch-cpu", [f"torch=={TORCH}+cpu"], asked, index=asked.index, cpu=True)
            _lock("torch-cuda", [f"torch=={TORCH}"], asked, index=asked.index)
        for name in ("base", "torch-cuda"):
            check_wheels(LOCKS / f"{name}.lock", uv=asked.uv, index=asked.index)
    except LockFailed as error:
        print(f"lock: {error}", file=sys.stderr)
        return 1
    return 0


def dependencies() -> list[str]:
    """Of Baton, but torch."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [one for one in read if Requirement(one).name != "torch"]


def check_wheels(lock: Path, *, uv: str, index: str) -> None:
    """Every pin has a wheel for each Python and platform of an image. Raises LockFailed."""
    for python in PYTHONS:
        for platform in PLATFORMS:
            where = ("--python-version", python, "--python-platform", platform)
            only = ("--no-deps", "--only-binary", ":all:", "--index-url", index)
            _run([uv, "pip", "compile", "--quiet", "--no-config", *where, *only, str(lock)])


def _lock(
    name: str, wanted: Sequence[str], asked: argparse.Namespace, *, index: str, cpu: bool = False
) -> None:
    goal = LOCKS / f"{name}.lock"
    command = [
        asked.uv, "pip", "compile", "--quiet", "--no-config", "--universal", "--generate-hashes",
        "--no-header", "--no-annotate", "--python-version", PYTHONS[0], "--index-url", index,
        "--output-file", str(goal), "-",
    ]  # fmt: skip
    if name != "base":
        command += ["--constraint", str(LOCKS / "base.lock")]
    if cpu:
        option = "--extra-index-url" if "://" in asked.torch_index else "--find-links"
        command += [option, asked.torch_index, "--index-strategy", "unsafe-best-match"]
    if asked.upgrade:
        command += ["--upgrade"]
    _run(command, told="\n".join(wanted))
    goal.write_text(HEADER + goal.read_text().removeprefix(HEADER))


def _run(command: Sequence[str], *, told: str = "") -> None:
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=WITHIN_S)
    if done.returncode:
        raise LockFailed(done.stderr.strip()[-2000:])


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--upgrade", action="store_true")
    parser.add_argument("--uv", default="uv")
    parser.add_argument("--index", default=PYPI)
    parser.add_argument("--torch-index", default=TORCH_CPU, help="an index, or a folder of wheels")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
