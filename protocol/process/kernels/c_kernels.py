"""Builds C kernels once per machine and loads them, or loads those that came with an image.

What an image brings lies in the folder that BATON_KERNELS names, a library for each kind of
processor under a name made of its sources, flags and kind: the fastest that runs here is loaded,
and nothing is compiled.

Elsewhere a library lies in the user's cache under a name made of its sources, flags, compiler and
CPU, so an old or foreign build is never loaded. Nor is one, in either place, that another user owns
or may write, or whose bytes are not those of the digest beside it: it is built again, where the
cache itself belongs to another in a folder of this process's own. Without a compiler there are no
kernels then: `load` raises `NoKernels`, and the callers' slower twins serve.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BatonError
from protocol.process.kernels.targets import Target, targets_here
from protocol.process.own_folder import NotOurs, cache_folder, is_ours, locked, make_own

BUILD_TIMEOUT_S = 120.0
DIGEST = ".sha256"
PREBUILT = "BATON_KERNELS"
"""The variable that names the folder of an image's kernels."""
NATIVE = "-march=native"
log = logging.getLogger(__name__)


class NoKernels(BatonError):
    """The kernels cannot be built or loaded here; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """All C files of one folder, and how they are compiled."""

    name: str
    folder: Path
    flags: tuple[str, ...]

    def load(self) -> ctypes.CDLL:
        """The kernels: those that the image brought, else built if this machine has not built them
        yet. Raises NoKernels."""
        brought = self._brought()
        if brought is not None:
            return _opened(brought)
        try:
            library = self.library()
            make_own(library.parent)
            with locked(library.parent):
                if not _is_sealed(library):
                    self._build(library)
        except (NotOurs, OSError, RuntimeError) as error:  # RuntimeError: there is no home
            remedy = "give the folder to this user, or name another in XDG_CACHE_HOME"
            told = {"kernels": self.name, "why": str(error), "remedy": remedy}
            log.warning("kernels built for this process alone", extra=told)
            return self._load_private()
        return _opened(library)

    def library(self) -> Path:
        """Where the library lies once it is built. RuntimeError for a user without a home."""
        return cache_folder() / f"{self.name}-{self._key()}.so"

    def prebuilt(self, target: Target, folder: Path) -> Path:
        """Where in an image's folder the library for such processors lies."""
        key = self._digest(*self._flags_for(target))
        return folder / f"{self.name}-{target.name}-{key}.so"

    def prebuild(self, target: Target, folder: Path, *, compiler: str) -> Path:
        """Built for an image, by a compiler for such processors. Raises NoKernels."""
        library = self.prebuilt(target, folder)
        self._build(library, found=compiler, flags=self._flags_for(target))
        return library

    def sources(self) -> list[Path]:
        return [path for path in self._files() if path.suffix == ".c"]

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix in (".c", ".h"))

    def _key(self) -> str:
        return self._digest(*self.flags, str(compiler()), platform.machine(), _cpu())

    def _digest(self, *words: str) -> str:
        digest = hashlib.sha256()
        for path in self._files():
            digest.update(path.name.encode() + path.read_bytes())
        digest.update("|".join(words).encode())
        return digest.hexdigest()[:24]

    def _flags_for(self, target: Target) -> tuple[str, ...]:
        return (*(flag for flag in self.flags if flag != NATIVE), *target.flags)

    def _brought(self) -> Path | None:
        """The fastest of the image's that runs here and is as it was built."""
        named = os.environ.get(PREBUILT)
        if not named or not _is_folder_of_ours(Path(named)):
            return None
        there = (self.prebuilt(target, Path(named)) for target in targets_here())
        return next((one for one in there if _is_sealed(one, otherwise="passed over")), None)

    def _load_private(self) -> ctypes.CDLL:
        """Of a folder that is gone when they are loaded."""
        try:
            with tempfile.TemporaryDirectory(prefix="baton-") as folder:
                library = Path(folder) / f"{self.name}.so"
                self._build(library)
                return _opened(library)
        except OSError as error:
            raise NoKernels(f"no folder to build in: {error}") from error

    def _build(
        self, library: Path, *, found: str | None = None, flags: tuple[str, ...] | None = None
    ) -> None:
        """Compile beside the goal, then rename: nobody sees half, nor does a crash leave it. By
        default with this machine's compiler, for it alone."""
        found = found or compiler()
        if found is None:
            raise NoKernels(f"no C compiler (cc, gcc or clang) found{_why_none_brought()}")
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            draft = Path(folder) / library.name
            command = [
                found,
                *(flags or self.flags),
                "-o",
                str(draft),
                *map(str, self.sources()),
                "-lm",
            ]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
            except subprocess.CalledProcessError as error:
                message = error.stderr.decode(errors="replace").strip()[-500:]
                raise NoKernels(f"{found} failed: {message}") from error
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NoKernels(f"{found} failed: {error}") from error
            _seal(draft, library)


def _is_folder_of_ours(folder: Path) -> bool:
    """Of an image: nobody else may exchange what lies in it. Tells of one that is not so."""
    try:
        if is_ours(folder.stat()):
            return True
        why = "others may have written it"
    except OSError as error:
        why = str(error)
    remedy = f"name the folder of an image in {PREBUILT}, owned by root or this user alone"
    told = {"folder": str(folder), "why": why, "remedy": remedy}
    log.warning("no kernels are taken from it", extra=told)
    return False


def _is_sealed(library: Path, *, otherwise: str = "built again") -> bool:
    """Whether it is there, as it was built; tells of one that is not, and what becomes of it."""
    try:
        text = _read_ours(library)
        digest = _read_ours(_digest_of(library)).decode(errors="replace")
        if digest == _digest_line(library, text):
            return True
        why = "its bytes are not those that were built"
    except FileNotFoundError as error:
        if Path(str(error.filename)) == library:
            return False
        why = "it has no digest"
    except (OSError, NotOurs) as error:
        why = str(error)
    remedy = f"none: it is {otherwise}"
    log.warning("kernels not loaded", extra={"file": str(library), "why": why, "remedy": remedy})
    return False


def _read_ours(file: Path) -> bytes:
    """Raises NotOurs for what somebody else owns or may write, OSError for a symlink too."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    with open(file, "rb", opener=lambda path, others: os.open(path, others | flags)) as stream:
        found = os.fstat(stream.fileno())
        if not is_ours(found):
            mode = stat.filemode(found.st_mode)
            raise NotOurs(f"{file} is of user {found.st_uid}, {mode}: others may have written it")
        return stream.read()


def _why_none_brought() -> str:
    """For whom an image's folder has no library either."""
    named = os.environ.get(PREBUILT)
    if not named:
        return ""
    kinds = " or ".join(target.name for target in targets_here())
    return f", and {named} has none for this processor ({kinds or 'older than x86-64-v3'})"


def _seal(draft: Path, library: Path) -> None:
    """The draft becomes the library, with its digest, both on the disk."""
    draft.chmod(0o755)
    digest = draft.with_suffix(DIGEST)
    digest.write_text(_digest_line(library, draft.read_bytes()))
    digest.chmod(0o644)
    for source, goal in ((draft, library), (digest, _digest_of(library))):
        _sync(source)
        source.replace(goal)
    _sync(library.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest_of(library: Path) -> Path:
    return library.with_name(library.name + DIGEST)


def _digest_line(library: Path, text: bytes) -> str:
    """As `sha256sum` writes it: of these bytes, under this name."""
    return f"{hashlib.sha256(text).hexdigest()}  {library.name}\n"


def _opened(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoKernels(f"cannot load {library}: {error}") from error


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
