"""How a checkpoint's authors make one vector of a text: their sentence-transformers files, read.

Those are `modules.json` and what it names. Without them a text's vector is what decoders are
trained for: the hidden state of its last token, of length 1.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import CheckpointError
from protocol.readings import PoolingKind
from protocol.text.model_files import read_whole
from protocol.text.text_config import read_json_object, read_json_object_if_there
from protocol.text.text_files import pooling_file

_USUAL: PoolingKind = "last"
_PREFIX = "pooling_mode_"
_KINDS: Mapping[str, PoolingKind] = {
    "cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last",
}  # fmt: skip
"""By their names, the older ones with what follows `_PREFIX`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingConfig:
    kind: PoolingKind = _USUAL
    is_normalised: bool = True
    """Each vector has length 1."""
    is_matryoshka: bool = False
    """The first few dimensions of a vector are a vector too."""
    dimensions: frozenset[int] = frozenset()
    """How many of them are. Empty: any number, if it is one."""
    refusal: str = ""
    """What the authors do to a text that Baton does not; "" if it does all."""


def read_pooling_config(path: Path) -> PoolingConfig:
    """Of the checkpoint in `path`. Raises CheckpointError for a file that is not as its name
    says."""
    config = read_json_object_if_there(path / "config.json")
    sizes = config.get("matryoshka_dimensions") or []
    if not isinstance(sizes, list) or not all(isinstance(size, int) for size in sizes):
        raise CheckpointError(f"{path / 'config.json'}: matryoshka_dimensions must be integers")
    modules = _modules(path / "modules.json")
    kind, refusal = _pooling(path, modules) if modules else (_USUAL, "")
    return PoolingConfig(
        kind=kind,
        is_normalised=not modules or "Normalize" in map(_name, modules),
        is_matryoshka=bool(sizes) or config.get("is_matryoshka") is True,
        dimensions=frozenset(sizes),
        refusal=refusal,
    )


def _pooling(path: Path, modules: Sequence[Mapping[str, Any]]) -> tuple[PoolingKind, str]:
    """The kind, and what of the modules cannot be done."""
    names = [_name(module) for module in modules]
    if names[:2] != ["Transformer", "Pooling"] or set(names[2:]) - {"Normalize"}:
        return _USUAL, f"modules {', '.join(names)}"
    file = pooling_file(modules)
    if not file or not (path / file).is_file():
        return _USUAL, f"pooling that {file or 'modules.json'} does not tell"
    modes = _modes(read_json_object(path / file))
    if len(modes) == 1 and modes[0] in _KINDS:
        return _KINDS[modes[0]], ""
    return _USUAL, f"pooling {', '.join(modes)}"


def _modes(config: Mapping[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [named] if isinstance(named, str) else list(map(str, named))
    flags = [key for key, one in config.items() if key.startswith(_PREFIX) and one is True]
    return [flag.removeprefix(_PREFIX) for flag in flags]


def _modules(file: Path) -> list[dict[str, Any]]:
    """Empty for a file that is not there."""
    if not file.exists():
        return []
    try:
        modules = json.loads(read_whole(file).decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not JSON: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise CheckpointError(f"{file}: is not a list of modules")
    return modules


def _name(module: Mapping[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]
