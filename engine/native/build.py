"""Builds the C kernels once per machine and loads them.

Called by `engine.ops`. The library lies in the user's cache under a name made of the sources, the
flags, the compiler and the CPU, so an old or foreign build is never loaded. Without a compiler
there are no kernels: `load` raises `NoKernels` and the torch twins serve.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401  (first: its libgomp then serves the kernels too, one thread pool)

from protocol.errors import BatonError

FLAGS = [
    *("-O2", "-march=native", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno"),
    *("-fopenmp", "-fPIC", "-shared"),
]
BUILD_TIMEOUT_S = 120.0
_SOURCES = Path(__file__).parent


class NoKernels(BatonError):
    """The kernels cannot be built or loaded here; says why."""


@cache
def load() -> ctypes.CDLL:
    """The kernels, built if this machine has not built them yet. Raises NoKernels."""
    library = _directory() / f"kernels-{_key()}.so"
    try:
        if not library.exists():
            _build(library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoKernels(f"cannot load {library}: {error}") from error


def compiler() -> str | None:
    """The C compiler: $CC, or the first of cc, gcc, clang."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "baton"


def _files() -> list[Path]:
    return sorted(path for path in _SOURCES.iterdir() if path.suffix in (".c", ".h"))


def _key() -> str:
    digest = hashlib.sha256()
    for path in _files():
        digest.update(path.name.encode() + path.read_bytes())
    digest.update("|".join((*FLAGS, str(compiler()), platform.machine(), _cpu())).encode())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = ("model name", "flags", "Features", "CPU part")
    return "|".join(dict.fromkeys(line for line in lines if line.startswith(facts)))


def _build(library: Path) -> None:
    """Compile beside the goal, then rename: two processes may build at once, neither sees half."""
    found = compiler()
    if found is None:
        raise NoKernels("no C compiler (cc, gcc or clang) found")
    library.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(path) for path in _files() if path.suffix == ".c"]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        draft = Path(folder) / library.name
        command = [found, *FLAGS, "-o", str(draft), *sources, "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            message = error.stderr.decode(errors="replace").strip()[-500:]
            raise NoKernels(f"{found} failed: {message}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoKernels(f"{found} failed: {error}") from error
        draft.replace(library)
