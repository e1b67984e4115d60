"""Text files on this machine's disk, by digest: what one router asked for, the next need not.

Any number of processes of one user share the folder: what is in it may be removed by another at any
time, so it is where texts are found, not where they are read for the first time. Nothing is
believed of it but what has the digest that it is looked for by.
"""

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from protocol.errors import BatonError, CheckpointError
from protocol.process.own_folder import cache_folder, locked, make_own
from protocol.text.text_files import TextFiles

NUM_KEPT = 8
_DRAFT = "new-"
DRAFT_S = 60.0
"""One as old as this was left by a process that died while it wrote."""
log = logging.getLogger("baton.models")


def default_folder() -> Path:
    """Of this user: in its cache, or without a home among the system's temporary files."""
    try:
        return cache_folder() / "texts"
    except RuntimeError:
        return Path("/tmp") / f"baton-texts-{os.geteuid()}"


class KeptTexts:
    """Blocks: for a thread."""

    def __init__(self, folder: Path, *, num_kept: int = NUM_KEPT) -> None:
        self._folder = folder
        self._num_kept = num_kept

    def find(self, digest: str) -> Path | None:
        """The folder of these files, whole; None where it is not, or is not ours alone."""
        found = self._folder / digest
        try:
            make_own(self._folder)
            if not _is_whole(found, digest):
                return None
            os.utime(found)
        except (OSError, BatonError) as error:
            log.info("kept text not used", extra={"folder": str(found), "why": str(error)})
            return None
        return found

    def keep(self, files: TextFiles) -> Path:
        """Their folder from now on, and the least used of more than `num_kept` goes. Raises OSError
        or NotOurs where nothing can be written."""
        make_own(self._folder)
        made = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._folder))
        goal = self._folder / files.digest
        try:
            files.write(made)
            with locked(self._folder):
                if not _is_whole(goal, files.digest):  # else another process was first
                    shutil.rmtree(goal, ignore_errors=True)
                    made.rename(goal)
                self._remove_others(goal)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return goal

    def _remove_others(self, newest: Path) -> None:
        """A process that is reading one of them asks a worker for it again."""
        begun = time.time() - DRAFT_S
        others = [path for path in self._folder.iterdir() if path != newest]
        drafts = [path for path in others if path.name.startswith(_DRAFT)]
        texts = sorted(set(others) - set(drafts), key=_used_at, reverse=True)
        left = [path for path in drafts if _used_at(path) < begun]
        for folder in (*left, *texts[self._num_kept - 1 :]):
            shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path, digest: str) -> bool:
    """Also False of one that is removed meanwhile, or was changed."""
    try:
        return folder.is_dir() and TextFiles.read(folder).digest == digest
    except CheckpointError:
        return False


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
