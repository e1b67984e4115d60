"""A file that is read at the start, and again whenever it has changed.

What is found by its path counts, so that a mounted Kubernetes secret, whose files are links that
are moved to another version, is seen too. A file that cannot be read or is wrong changes nothing.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import Counter

from protocol.errors import SettingsError

LOOK_EVERY_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind(Generic[T]):
    """What such a file has, and by which words it is spoken of."""

    setting: str
    """That names it: `keys_file`."""
    noun: str
    """Of what is in it, for the log: `keys`."""
    max_bytes: int
    parse: Callable[[bytes], T]
    """Raises ValueError that says what is wrong."""

    def load(self, path: Path) -> T:
        """SettingsError naming the file and what is wrong with it."""
        try:
            if path.exists() and not (path.is_file() and path.stat().st_size <= self.max_bytes):
                raise ValueError(f"must be a regular file of at most {self.max_bytes >> 20} MiB")
            return self.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"{self.setting}: {str(path)!r}: {error}") from error


class WatchedFile(Generic[T]):
    """`run` it beside whoever is told by `use` what is in it."""

    def __init__(
        self, path: Path, kind: FileKind[T], use: Callable[[T], None], *, reloads: Counter
    ) -> None:
        """Reads the file: SettingsError when it is wrong. `reloads`: by outcome, `loaded` or
        `refused`."""
        self._path = path
        self._kind = kind
        self._use = use
        self._reloads = reloads
        self._log = logging.getLogger(f"baton.{kind.noun}")
        self._seen = _version(path)
        use(kind.load(path))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Read it if it is not the one that was read."""
        version = await asyncio.to_thread(_version, self._path)
        if version == self._seen:
            return
        self._seen = version
        try:
            found = await asyncio.to_thread(self._kind.load, self._path)
        except SettingsError as error:
            self._reloads.labels("refused").inc()
            noun = self._kind.noun
            remedy = f"correct the file; the {noun} of before stay in force until it is right"
            self._log.warning(f"{noun} refused", extra={"why": str(error), "remedy": remedy})
            return
        self._reloads.labels("loaded").inc()
        self._use(found)


def _version(path: Path) -> tuple[int, ...] | None:
    """What differs between two versions of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
