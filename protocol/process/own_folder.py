"""Folders that this user alone writes: nothing is loaded from another."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import BatonError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class NotOurs(BatonError):
    """A file or folder that somebody else may have put there."""


def cache_folder() -> Path:
    """Where what can be had again lies: compiled kernels, texts. RuntimeError for a user without a
    home."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "baton"


def make_own(folder: Path) -> None:
    """Makes it, for this user alone, or takes others' right to write it away. Raises NotOurs,
    OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_owner(folder.parent, folder.parent.stat())
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotOurs(f"{folder} is no folder")
    _check_owner(folder, found)
    if found.st_mode & OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """For one process at a time; let go of when the holder dies. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def is_ours(found: os.stat_result) -> bool:
    """Whether nobody else may have written it: it is of this user, or root, and of no other."""
    return found.st_uid in _trusted_users() and not found.st_mode & OTHERS_WRITE


def _check_owner(folder: Path, found: os.stat_result) -> None:
    if found.st_uid not in _trusted_users():
        raise NotOurs(f"{folder} belongs to user {found.st_uid}")


def _trusted_users() -> tuple[int, ...]:
    return (0, os.geteuid())  # root could do anything anyway
