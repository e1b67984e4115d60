"""The keys file, read at the start and again whenever it has changed.

A file that cannot be read or is wrong changes nothing.
"""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import SettingsError
from protocol.process.metrics import RouterMetrics
from router.tenants.api_key import ApiKey
from router.tenants.key_file import MAX_FILE_BYTES, read_keys
from router.tenants.key_ring import KeyRing
from router.watched_file import file_version

LOOK_EVERY_S = 1.0
log = logging.getLogger("baton.keys")


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """SettingsError naming the file and the entry at fault."""
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
            raise ValueError(f"must be a regular file of at most {MAX_FILE_BYTES >> 20} MiB")
        return read_keys(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"keys_file: {str(path)!r}: {error}") from error


class KeyWatch:
    """`run` it beside whoever asks `ring`."""

    def __init__(self, path: Path, ring: KeyRing, metrics: RouterMetrics) -> None:
        """Reads the file. SettingsError when it is wrong."""
        self._path = path
        self._ring = ring
        self._metrics = metrics
        self._seen = file_version(path)
        self._use(load_keys(path))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Read it if it is not the one that was read."""
        version = await asyncio.to_thread(file_version, self._path)
        if version == self._seen:
            return
        self._seen = version
        try:
            keys = await asyncio.to_thread(load_keys, self._path)
        except SettingsError as error:
            self._metrics.key_reloads.labels("refused").inc()
            remedy = "correct the file; the keys of before stay in force until it is right"
            log.warning("keys refused", extra={"why": str(error), "remedy": remedy})
            return
        self._metrics.key_reloads.labels("loaded").inc()
        self._use(keys)

    def _use(self, keys: Sequence[ApiKey]) -> None:
        self._ring.replace_keys(keys)
        self._metrics.keys.set(len(keys))
        told = {"keys": len(keys), "tenants": self._ring.num_tenants}
        log.info("keys loaded", extra=told)
