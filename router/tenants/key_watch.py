"""The keys file, read at the start and again whenever it has changed."""

import logging
from collections.abc import Sequence
from pathlib import Path

from protocol.process.metrics import RouterMetrics
from router.tenants.api_key import ApiKey
from router.tenants.key_file import MAX_FILE_BYTES, read_keys
from router.tenants.key_ring import KeyRing
from router.watched_file import FileKind, WatchedFile

KEYS_FILE: FileKind[Sequence[ApiKey]] = FileKind(
    setting="keys_file", noun="keys", max_bytes=MAX_FILE_BYTES, parse=read_keys
)
log = logging.getLogger("baton.keys")


def watch_keys(path: Path, ring: KeyRing, metrics: RouterMetrics) -> WatchedFile[Sequence[ApiKey]]:
    """Fills `ring`, now and when the file has changed. SettingsError when it is wrong."""

    def use(keys: Sequence[ApiKey]) -> None:
        ring.replace_keys(keys)
        metrics.keys.set(len(keys))
        log.info("keys loaded", extra={"keys": len(keys), "tenants": ring.num_tenants})

    return WatchedFile(path, KEYS_FILE, use, reloads=metrics.key_reloads)
