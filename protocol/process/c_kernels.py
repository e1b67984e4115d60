"""Builds C kernels once per machine and loads them.

A library lies in the user's cache under a name made of its sources, flags, compiler and CPU, so an
old or foreign build is never loaded. Without a compiler there are no kernels: `load` raises
`NoKernels`, and the callers' slower twins serve.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BatonError

BUILD_TIMEOUT_S = 120.0


class NoKernels(BatonError):
    """The kernels cannot be built or loaded here; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """All C files of one folder, and how they are compiled."""

    name: str
    folder: Path
    flags: tuple[str, ...]

    def load(self) -> ctypes.CDLL:
        """The kernels, built if this machine has not built them yet. Raises NoKernels."""
        library = self.library()
        try:
            if not library.exists():
                self._build(library)
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise NoKernels(f"cannot load {library}: {error}") from error

    def library(self) -> Path:
        """Where the library lies once it is built."""
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(root) / "baton" / f"{self.name}-{self._key()}.so"

    def sources(self) -> list[Path]:
        return [path for path in self._files() if path.suffix == ".c"]

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix in (".c", ".h"))

    def _key(self) -> str:
        digest = hashlib.sha256()
        for path in self._files():
            digest.update(path.name.encode() + path.read_bytes())
        digest.update("|".join((*self.flags, str(compiler()), platform.machine(), _cpu())).encode())
        return digest.hexdigest()[:24]

    def _build(self, library: Path) -> None:
        """Compile beside the goal, then rename: two processes may build at once, neither sees
        half."""
        found = compiler()
        if found is None:
            raise NoKernels("no C compiler (cc, gcc or clang) found")
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            draft = Path(folder) / library.name
            command = [found, *self.flags, "-o", str(draft), *map(str, self.sources()), "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
            except subprocess.CalledProcessError as error:
                message = error.stderr.decode(errors="replace").strip()[-500:]
                raise NoKernels(f"{found} failed: {message}") from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NoKernels(f"{found} failed: {error}") from error
            draft.replace(library)


def compiler() -> str | None:
    """The C compiler: $CC, or the first of cc, gcc, clang."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = ("model name", "flags", "Features", "CPU part")
    return "|".join(dict.fromkeys(line for line in lines if line.startswith(facts)))
