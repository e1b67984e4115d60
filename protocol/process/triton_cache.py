"""Where Triton keeps what it has compiled: a folder of this user alone, wherever the process runs.

Triton itself takes `~/.triton`, which a user without a home cannot write and others may. What lies
in the folder is loaded as machine code, so whatever somebody else may have written there is taken
out before the first kernel is asked for; where the folder cannot be ours, the process gets one of
its own and compiles anew.
"""

import atexit
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from protocol.process.own_folder import OTHERS_WRITE, NotOurs, cache_folder, is_ours, make_own

VARIABLE = "TRITON_CACHE_DIR"
log = logging.getLogger(__name__)


def use_own_triton_cache() -> Path:
    """The folder, from now on Triton's in this process and its children: the one that VARIABLE
    names, else one beside the C kernels. To be called before a kernel is compiled; harmless when
    repeated. What this process makes from now on others cannot write, whatever its umask was: or
    its own kernels would be taken out at the next start."""
    os.umask(os.umask(OTHERS_WRITE) | OTHERS_WRITE)
    try:
        named = os.environ.get(VARIABLE)
        if not named:
            make_own(cache_folder())
        folder = Path(named) if named else cache_folder() / "triton"
        make_own(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise NotOurs(f"{folder} cannot be written")
        _take_out_others(folder)
    except (NotOurs, OSError, RuntimeError) as error:  # RuntimeError: there is no home
        remedy = f"give the folder to this user, or name another in {VARIABLE} or XDG_CACHE_HOME"
        told = {"why": str(error), "remedy": remedy}
        log.warning("Triton's kernels are compiled for this process alone", extra=told)
        folder = _private_folder()
    os.environ[VARIABLE] = str(folder)
    return folder


def _take_out_others(folder: Path) -> None:
    """Entries, a folder for each kernel, in which anything is not ours. OSError where one cannot
    be taken out."""
    for entry in folder.iterdir():
        foreign = next(_foreign(entry), None)
        if foreign is None:
            continue
        remedy = "none: the kernel is compiled again"
        told = {"file": str(foreign), "why": "others may have written it", "remedy": remedy}
        log.warning("a compiled kernel is not loaded", extra=told)
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _foreign(entry: Path) -> Iterator[Path]:
    """What of it is not ours; links are not followed, so neither are they ours."""
    try:
        found = entry.lstat()
    except FileNotFoundError:  # another process of ours ends its draft
        return
    if stat.S_ISLNK(found.st_mode) or not is_ours(found):
        yield entry
    elif stat.S_ISDIR(found.st_mode):
        with suppress(FileNotFoundError):
            for inner in entry.iterdir():
                yield from _foreign(inner)


def _private_folder() -> Path:
    """Of this process, and gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="baton-triton-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
