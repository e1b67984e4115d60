"""Names that stand for models, as an operator writes them: a JSON file, read again as it changes.

`{"prod": {"llama-3": 95, "llama-3@0e9e39": 5}}`: each name with what it stands for, a model or one
of its revisions, and the weight of each. A file that is wrong changes nothing.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from protocol.process.metrics import RouterMetrics
from router.models.snapshot import Aliases
from router.watched_file import FileKind, WatchedFile

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


ALIASES_FILE: FileKind[Aliases] = FileKind(
    setting="aliases_file", noun="aliases", max_bytes=1 << 20, parse=read_aliases
)


def watch_aliases(
    path: Path, use: Callable[[Aliases], None], metrics: RouterMetrics
) -> WatchedFile[Aliases]:
    """Tells them by `use`, now and when the file has changed. SettingsError when it is wrong."""

    def tell(aliases: Aliases) -> None:
        use(aliases)
        log.info("aliases loaded", extra={"aliases": dict(aliases)})

    return WatchedFile(path, ALIASES_FILE, tell, reloads=metrics.alias_reloads)
