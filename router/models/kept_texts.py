"""Text files on this machine's disk, by digest: what one router asked for, the next need not.

Any number of processes of one user share the folder. Nothing is believed of it but what has the
digest that it is looked for by.
"""

import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from protocol.errors import CheckpointError
from protocol.process.own_folder import make_own
from protocol.text.text_files import TextFiles

NUM_KEPT = 8
log = logging.getLogger("baton.models")


def default_folder() -> Path:
    """Of this user, among the system's temporary files."""
    return Path(tempfile.gettempdir()) / f"baton-texts-{os.geteuid()}"


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
            if not found.is_dir() or TextFiles.read(found).digest != digest:
                return None
            os.utime(found)
        except (OSError, CheckpointError) as error:
            log.info("kept text not used", extra={"folder": str(found), "why": str(error)})
            return None
        return found

    def keep(self, files: TextFiles) -> Path:
        """Their folder from now on, and the least used of more than `num_kept` goes. Raises OSError
        or NotOurs where nothing can be written."""
        make_own(self._folder)
        made = Path(tempfile.mkdtemp(prefix="new-", dir=self._folder))
        goal = self._folder / files.digest
        try:
            files.write(made)
            shutil.rmtree(goal, ignore_errors=True)  # `find` refused it
            with suppress(FileExistsError, OSError):  # another process was first: the same bytes
                made.rename(goal)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._remove_others(goal)
        return goal

    def _remove_others(self, newest: Path) -> None:
        """A process that is reading one of them asks for it again."""
        folders = [path for path in self._folder.iterdir() if path != newest]
        folders.sort(key=_used_at, reverse=True)
        for folder in folders[self._num_kept - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
