"""From what `--model` says to a folder: a directory, a cache's entry, or a model by its name.

The hub's own library looks names up and downloads, so its variables hold: HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT. Only what Baton reads is downloaded. Whether that can be read
is for whoever reads it to say.
"""

import logging
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from protocol.errors import CheckpointError
from protocol.text.model_files import (
    TOKENIZER,
    WEIGHTS,
    WEIGHTS_INDEX,
    check_readable,
    explain_missing,
    missing,
)
from protocol.text.text_config import read_json_object, read_json_object_if_there
from protocol.text.text_files import TEXT_FILES

_WEIGHT_FILES = (
    *(WEIGHTS_INDEX, "quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    *("adapter_config.json", "adapter_model.*"),
)
"""Small ones: which files have the weights, and whether they can be read."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([^@\s]+))?", re.ASCII)
_REPO = "models--"
FETCHED = "baton-fetched.json"
"""Says of a folder which model and revision it is; written last by `baton fetch`."""
_API_S = 30.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    path: Path
    name: str
    """In the API, where nothing else is asked for."""
    revision: str = ""
    """The hub's commit. "": of no hub."""

    def settings(self, *, served_name: str) -> dict[str, object]:
        """Those of a process that reads this folder."""
        return {"model": self.path, "served_name": served_name or self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a model on the hub."""

    name: str
    """Below the model's folder."""
    url: str
    num_bytes: int
    digest: str
    """`sha256:` of its bytes, or `git:`, SHA-1 of them as git counts a blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """What the hub has of one commit."""

    name: str
    commit: str
    files: tuple[HubFile, ...]
    headers: dict[str, str]
    """Of a request for a file: the token, if there is one."""

    @property
    def text_files(self) -> tuple[HubFile, ...]:
        """Of those that Baton reads, all but the weights: they say which are the weights."""
        wanted = (*TEXT_FILES, *_WEIGHT_FILES)
        return tuple(one for one in self.files if any(fnmatchcase(one.name, w) for w in wanted))

    def weight_files(self, folder: Path) -> tuple[HubFile, ...]:
        """Those that the text files, which lie in `folder`, name."""
        names = set(_weight_files(folder))
        return tuple(one for one in self.files if one.name in names)

    def check_whole(self, folder: Path) -> None:
        """Raises CheckpointError for what the model lacks on the hub."""
        there = [one.name for one in self.files]
        for files in (["config.json"], [TOKENIZER], _weight_files(folder)):
            if not any((folder / file).exists() for file in files):
                raise explain_missing(files[0], there, place=self.name)


def model_on_hub(asked: str) -> HubModel:
    """What `ORG/NAME[@REVISION]` is on the hub. Raises CheckpointError, HubSilent where the hub
    does not answer, or must not be asked."""
    name, revision = split_name(asked)
    from huggingface_hub import HfApi, constants, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        raise HubSilent("HF_HUB_OFFLINE is set")
    try:
        found = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_API_S)
    except Exception as error:  # what its transports raise has no common base
        if _is_silence(error):
            raise HubSilent(f"{constants.ENDPOINT} cannot be reached: {_line(error)}") from error
        raise CheckpointError(f"{asked}: {_why(name, error)}") from error
    commit = str(found.sha)
    files = tuple(
        HubFile(
            name=one.rfilename,
            url=hf_hub_url(name, one.rfilename, revision=commit),
            num_bytes=int(one.size or 0),
            digest=f"sha256:{one.lfs.sha256}" if one.lfs else f"git:{one.blob_id}",
        )
        for one in found.siblings or ()
    )
    return HubModel(name=name, commit=commit, files=files, headers=build_hf_headers())


class HubSilent(CheckpointError):
    """The hub cannot be asked now."""


def split_name(asked: str) -> tuple[str, str | None]:
    """Name and revision of `ORG/NAME[@REVISION]`. Raises CheckpointError."""
    if (parts := _NAME.fullmatch(asked)) is None:
        raise CheckpointError(f"{asked}: no such folder; a model by name is ORG/NAME[@REVISION]")
    name, revision = parts.groups()
    return name, revision


def resolve_model(model: Path) -> ModelFolder:
    """The folder of a `--model`, downloaded if need be. An existing directory goes before a name.
    Raises CheckpointError."""
    try:
        found = _on_disk(model.expanduser()) or _by_name(str(model))
        if not (config := found.path / "config.json").is_file():
            raise missing(config)
    except (OSError, RuntimeError) as error:  # RuntimeError: whose home is `~`?
        raise CheckpointError(f"{model}: cannot be read: {error}") from error
    told = {"folder": str(found.path), "served_name": found.name, "revision": found.revision}
    log.info("model found", extra=told)
    return found


def expected_name(model: Path) -> str:
    """`ModelFolder.name` of what `resolve_model` will find, without asking anybody; "" where it
    cannot be told."""
    try:
        found = _on_disk(model.expanduser())
    except (CheckpointError, OSError, RuntimeError):
        return ""
    if found is not None:
        return found.name
    parts = _NAME.fullmatch(str(model))
    return "" if parts is None else parts[1]


def _on_disk(path: Path) -> ModelFolder | None:
    """Of the hub's cache the snapshot of `main`, or the only one; any other folder as it is."""
    if path.exists() and not path.is_dir():
        check_readable(path)
        raise CheckpointError(f"{path}: is a file; give the folder with its config.json")
    if not path.exists():
        return None
    if path.name.startswith(_REPO) and (path / "snapshots").is_dir():
        path = _snapshot(path)
    real = path.resolve()
    if (fetched := _as_fetched(real)) is not None:
        return fetched
    repo = real.parent.parent.name
    if real.parent.name == "snapshots" and repo.startswith(_REPO):
        name = repo.removeprefix(_REPO).replace("--", "/", 1)
        return ModelFolder(path=path, name=name, revision=real.name)
    return ModelFolder(path=path, name=real.name)


def _as_fetched(folder: Path) -> ModelFolder | None:
    """What `baton fetch` says that it is; by its own path, lest a link in it moves meanwhile."""
    told = read_json_object_if_there(folder / FETCHED)
    name, revision = told.get("model"), told.get("revision")
    if not isinstance(name, str) or not isinstance(revision, str):
        return None
    return ModelFolder(path=folder, name=name, revision=revision)


def _snapshot(repo: Path) -> Path:
    commits = sorted(entry.name for entry in (repo / "snapshots").iterdir())
    main = repo / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else commits[0] if commits else ""
    if commit not in commits or (not main.is_file() and len(commits) > 1):
        there = ", ".join(commits) or "none"
        raise CheckpointError(
            f"{repo}: no snapshot of main; there is {there}: give one, or download the model again"
        )
    return repo / "snapshots" / commit


def _by_name(asked: str) -> ModelFolder:
    name, revision = split_name(asked)
    from huggingface_hub import HfApi  # 0.3 s, for names alone
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    hub = HfApi()
    try:
        wanted = [*TEXT_FILES, *_WEIGHT_FILES]
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
        commit, needed = folder.name, [["config.json"], [TOKENIZER]]
        if (folder / "config.json").exists():
            needed.append(_weight_files(folder))
            hub.snapshot_download(name, revision=commit, allow_patterns=needed[-1])
        for files in needed:
            if not any((folder / file).exists() for file in files):
                there = hub.list_repo_files(name, revision=commit)
                raise explain_missing(files[0], there, place=name)
    except CheckpointError:
        raise
    except Exception as error:  # what its transports raise has no common base
        raise CheckpointError(f"{asked}: {_why(name, error)}") from error
    return ModelFolder(path=folder, name=name, revision=commit)


def _weight_files(folder: Path) -> list[str]:
    """Those that may hold the weights; whoever reads them says what is wrong with the index."""
    named = read_json_object(folder / "config.json").get("transformers_weights")
    if named is not None:
        return [str(named)]
    shards = read_json_object_if_there(folder / WEIGHTS_INDEX).get("weight_map")
    return [WEIGHTS, *({*map(str, shards.values())} if isinstance(shards, dict) else ())]


def _why(name: str, error: Exception) -> str:
    """And what to do."""
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    match error:
        case errors.GatedRepoError():
            return f"is gated: accept its terms at {where}/{name}, and set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return f"no such folder, nor a model at {where}; set HF_TOKEN if it is private"
        case errors.RevisionNotFoundError():
            return f"{where}/{name} has no such revision"
        case errors.LocalEntryNotFoundError():
            cache = f"not wholly in the cache {constants.HF_HUB_CACHE}"
            if constants.HF_HUB_OFFLINE:
                return f"{cache}, and HF_HUB_OFFLINE is set; unset it, or hf download {name} before"
            return f"{cache}, and {where} cannot be reached: {_line(error.__cause__ or error)}"
        case _:
            return f"cannot be downloaded from {where}: {_line(error)}"


def _is_silence(error: Exception) -> bool:
    """Whether the hub said nothing, or that it is broken; else it has answered."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= 500 or status == 429


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
