"""Names that stand for models, as an operator writes them: a JSON file, read again as it changes.

`{"prod": {"llama-3": 95, "llama-3@0e9e39": 5}}`: each name with what it stands for, a model or one
of its revisions, and the weight of each. A file that is wrong changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from protocol.errors import SettingsError
from protocol.process.metrics import RouterMetrics
from router.models.snapshot import Aliases
from router.watched_file import file_version

LOOK_EVERY_S = 1.0
MAX_FILE_BYTES = 1 << 20
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Weight = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_aliases: msgspec.json.Decoder[dict[_Name, dict[_Name, _Weight]]] = msgspec.json.Decoder(
    dict[_Name, dict[_Name, _Weight]]
)
log = logging.getLogger("baton.aliases")


def read_aliases(text: bytes) -> Aliases:
    """ValueError naming the alias at fault."""
    try:
        aliases = _aliases.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    for name, targets in aliases.items():
        if not any(targets.values()):
            raise ValueError(f"{name!r}: needs a model with a weight above 0")
        if others := sorted((targets.keys() & aliases.keys()) - {name}):
            raise ValueError(f"{name!r}: {others[0]!r} is an alias; name the models themselves")
    return aliases


def load_aliases(path: Path) -> Aliases:
    """SettingsError naming the file and what is wrong with it."""
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
            raise ValueError(f"must be a regular file of at most {MAX_FILE_BYTES >> 20} MiB")
        return read_aliases(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"aliases_file: {str(path)!r}: {error}") from error


class AliasWatch:
    """`run` it beside whoever is told the aliases by `use`."""

    def __init__(self, path: Path, use: Callable[[Aliases], None], metrics: RouterMetrics) -> None:
        """Reads the file. SettingsError when it is wrong."""
        self._path = path
        self._use = use
        self._metrics = metrics
        self._seen = file_version(path)
        self._tell(load_aliases(path))

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
            aliases = await asyncio.to_thread(load_aliases, self._path)
        except SettingsError as error:
            self._metrics.alias_reloads.labels("refused").inc()
            remedy = "correct the file; the aliases of before hold until it is right"
            log.warning("aliases refused", extra={"why": str(error), "remedy": remedy})
            return
        self._metrics.alias_reloads.labels("loaded").inc()
        self._tell(aliases)

    def _tell(self, aliases: Aliases) -> None:
        self._use(aliases)
        log.info("aliases loaded", extra={"aliases": dict(aliases)})
