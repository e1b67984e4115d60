"""What there is to fetch: a model's files by name, address, size and digest."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from protocol.errors import CheckpointError
from protocol.process.model_folder import HubFile, HubModel

MAX_LIST_BYTES = 4 << 20
MAX_FILES = 10_000
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    name: str
    """Below the model's folder, with `/`; never out of it."""
    url: str
    digest: str
    """`sha256:` or `git:` and hexadecimal digits."""
    num_bytes: int | None = None
    """None: the server says it when asked for the file."""

    @property
    def where(self) -> str:
        """Its address, as it is shown."""
        return shown(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One revision of one model."""

    model: str
    revision: str
    files: tuple[RemoteFile, ...]
    """To begin with."""
    more: Callable[[Path], Sequence[RemoteFile]] = lambda folder: ()
    """Which files those, in this folder, ask for."""
    check: Callable[[Path], None] = lambda folder: None
    """Raises CheckpointError for a folder in which something lacks though all came."""
    headers: tuple[tuple[str, str], ...] = ()
    remedy: str = "see that the address is right and may be read"
    """For a server that refuses a file."""


def is_address(model: str) -> bool:
    """Whether a `--model` of `baton fetch` is that of a list, or means to be one."""
    return "://" in model


def shown(url: str) -> str:
    """An address for a person to read: without a name, a password or a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def of_hub(found: HubModel) -> Listing:
    """Raises CheckpointError for a name that no file of a model has."""
    return Listing(
        model=found.name,
        revision=found.commit,
        files=tuple(map(_of_hub_file, found.text_files)),
        more=lambda folder: tuple(map(_of_hub_file, found.weight_files(folder))),
        check=found.check_whole,
        headers=tuple(found.headers.items()),
        remedy=f"accept the terms of {found.name} on the hub, and set HF_TOKEN",
    )


def of_list(url: str, text: bytes, *, name: str = "") -> Listing:
    """The files that a list names, beside it. The revision is the digest of the list. Raises
    CheckpointError, which names the line."""
    files, seen, where = [], set(), shown(url)
    for number, line in enumerate(_lines(where, text), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise CheckpointError(
                f"{where}: line {number}: must be a SHA-256, two spaces and a file's name; write "
                "the list by: sha256sum FILE... > SHA256SUMS"
            )
        digest, file = parts[1].lower(), parts[2].removeprefix("./")
        if _safe(file, where) in seen:
            raise CheckpointError(f"{where}: line {number}: {file} for the second time")
        seen.add(file)
        address = urljoin(url, quote(file))
        files.append(RemoteFile(name=file, url=address, digest=f"sha256:{digest}"))
    if not 0 < len(files) <= MAX_FILES:
        raise CheckpointError(f"{where}: names {len(files)} files, must be 1 to {MAX_FILES}")
    revision = hashlib.sha256(text).hexdigest()[:40]
    return Listing(model=name or name_in(url), revision=revision, files=tuple(files))


def name_in(url: str) -> str:
    """The folder's in the address of a list. Raises CheckpointError where there is none."""
    folder = PurePosixPath(urlsplit(url).path).parent.name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", folder, re.ASCII):
        raise CheckpointError(
            f"{shown(url)}: names no folder that could be a model's name; give --name"
        )
    return folder


def _lines(where: str, text: bytes) -> list[str]:
    try:
        return text.decode().splitlines()
    except UnicodeDecodeError as error:
        why = f"{where}: must be a list in UTF-8, as sha256sum prints it"
        raise CheckpointError(why) from error


def _of_hub_file(file: HubFile) -> RemoteFile:
    name = _safe(file.name, shown(file.url))
    return RemoteFile(name=name, url=file.url, digest=file.digest, num_bytes=file.num_bytes)


def _safe(name: str, where: str) -> str:
    """`name`, or CheckpointError for one that would lie elsewhere, or where ours do."""
    parts = PurePosixPath(name).parts
    bad = not parts or name.startswith("/") or "\\" in name or "\0" in name
    if bad or any(part.startswith(".") for part in parts) or "/".join(parts) != name:
        raise CheckpointError(f"{where}: {name!r}: must be a path below the model's folder")
    return name
