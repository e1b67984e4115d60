"""A folder of models: `MODEL@REVISION` each, whole or not there.

What is not whole lies in `.baton` below the cache, beside a lock for each. A revision that was
asked for by a branch's name is a link to the commit's folder, `ORG/NAME@main`, changed in one step.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.errors import CheckpointError
from protocol.process.model_folder import FETCHED
from protocol.text.text_config import read_json_object_if_there

_OURS = ".baton"
_LOOK_S = 0.2
_SAY_S = 30.0
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
log = logging.getLogger(__name__)


class ModelCache:
    """Raises CheckpointError for a folder that cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def open(self) -> None:
        """Make it."""
        try:
            (self.folder / _OURS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be written: {error.strerror}; give --cache a folder that "
                "this user, or its group, may write"
            ) from error

    def entry(self, model: str, revision: str) -> Path:
        """Where a revision lies, or will."""
        return self.folder / f"{model}@{revision.replace('/', '--')}"

    def whole(self, model: str, revision: str) -> Path | None:
        """The folder of a revision, by its commit or by the name that it was asked for, if all its
        files are there as they came."""
        entry = self.entry(model, revision)
        try:
            told = read_json_object_if_there(entry / FETCHED)
        except CheckpointError:
            return None
        files = told.get("files")
        if told.get("model") != model or not isinstance(files, dict):
            return None
        sizes = {name: _size(entry / name) for name in files}
        return entry if sizes == files else None

    @contextmanager
    def held(self, model: str, revision: str) -> Iterator[Path]:
        """The folder to fetch a revision into, nobody else's meanwhile; waits for whoever has it,
        on this machine or, by the file system's locks, on another."""
        name = f"{model.replace('/', '--')}@{revision}"
        partial = self.folder / _OURS / name
        descriptor = os.open(f"{partial}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            if not _lock(descriptor, what=f"{model}@{revision}"):
                partial = partial.with_name(f"{name}.{_me().replace(' ', '-')}")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _me().encode(), 0)
            yield partial
        finally:
            os.close(descriptor)  # and with it goes the lock

    def begin(self, partial: Path, entry: Path) -> None:
        """What lies at `entry` and is not whole becomes the beginning."""
        if entry.exists() and not partial.exists():
            log.warning("not whole any more, fetched again", extra={"folder": str(entry)})
            entry.rename(partial)
        partial.mkdir(parents=True, exist_ok=True)

    def finish(self, partial: Path, *, model: str, revision: str, facts: Mapping[str, str]) -> Path:
        """All of it is there: on the disk, read-only, and then at its place."""
        entry = self.entry(model, revision)
        mark = partial / FETCHED
        mark.unlink(missing_ok=True)  # of a finish that was killed: read-only, perhaps another's
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(partial)): _size(path) for path in files}
        told = {"model": model, "revision": revision, **facts, "files": sizes}
        mark.write_text(json.dumps(told, indent=1))
        for file in (*files, mark):
            with suppress(PermissionError):  # another user's of our group, who began
                file.chmod(0o444)
            _sync(file)
        for folder in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
            _sync(folder)
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.rename(entry)
        except OSError:
            if self.whole(model, revision) is None:
                raise
            shutil.rmtree(partial, ignore_errors=True)  # another was first, beyond our lock
        _sync(entry.parent)
        return entry

    def link(self, model: str, asked: str, revision: str) -> Path:
        """`MODEL@asked`, which leads to the revision."""
        entry, link = self.entry(model, revision), self.entry(model, asked)
        if link == entry or (link.is_symlink() and link.readlink() == Path(entry.name)):
            return link
        draft = link.with_name(f".{link.name}.{_me().replace(' ', '-')}")
        try:
            with suppress(FileNotFoundError):
                draft.unlink()
            draft.symlink_to(entry.name)
            draft.replace(link)
        except OSError as error:
            raise CheckpointError(
                f"{link}: no link can be made: {error.strerror}; ask for {model}@{revision}"
            ) from error
        return link

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free


def is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _lock(descriptor: int, *, what: str) -> bool:
    """False: this file system knows no locks."""
    say_at = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            remedy = "fetch from one machine at a time, or each fetches for itself"
            told = {"why": error.strerror, "remedy": remedy}
            log.warning("the cache's file system has no locks", extra=told)
            return False
        if time.monotonic() >= say_at:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            log.info("waits for another fetch", extra={"model": what, "held_by": holder})
            say_at = time.monotonic() + _SAY_S
        time.sleep(_LOOK_S)


def _me() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
