"""The files of a checkpoint that make tokens of text and text of tokens: found, digested, packed.

Two folders have the same digest when these files have the same names and bytes, whatever else lies
there and wherever that is.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from protocol.errors import CheckpointError, WireError
from protocol.text.model_files import MAX_TOKENIZER_BYTES, read_whole

TEXT_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.json", "chat_template.jinja"),
    *("processor_config.json", "additional_chat_templates/*.jinja", "modules.json"),
    "*_Pooling/config.json",
)
"""As patterns, below a checkpoint's folder; of a last one whose folder has another name
`pooling_file` tells."""
_FOLDER = re.compile(r"\w[\w.-]*", re.ASCII)
MAX_ARCHIVE_BYTES = 512 << 20
"""Of all files together, unpacked."""
MAX_PART_BYTES = 1 << 20
"""Of a packed archive, in one message: what waits behind it on a link waits for 10 ms at most."""
_NAME = re.compile(
    "|".join(re.escape(pattern).replace(r"\*", r"\w[\w.-]*") for pattern in TEXT_FILES), re.ASCII
)
_LEVEL = 1
"""Of zlib: a tokeniser of 33 MB takes 0.3 s instead of 2, and a third more bytes."""
_files: msgspec.msgpack.Decoder[dict[str, bytes]] = msgspec.msgpack.Decoder(dict[str, bytes])


@dataclass(frozen=True)
class TextFiles:
    files: Mapping[str, bytes]
    """By their path below the folder, with `/`."""

    @classmethod
    def read(cls, folder: Path) -> "TextFiles":
        """Those that are there. Raises CheckpointError for one that cannot be read."""
        found = (path for pattern in TEXT_FILES for path in folder.glob(pattern))
        names = {path.relative_to(folder).as_posix() for path in found}
        files = {name: _read(folder / name) for name in sorted(names) if _NAME.fullmatch(name)}
        pooling = _pooling_file(files)
        if pooling not in files and (folder / pooling).is_file():
            files[pooling] = _read(folder / pooling)
        return cls(files)

    @cached_property
    def digest(self) -> str:
        """Of names and bytes, 32 hexadecimal digits."""
        total = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return total.hexdigest()[:32]

    def packed(self) -> bytes:
        """For `unpacked`, on another machine."""
        return zlib.compress(msgspec.msgpack.encode(dict(self.files)), _LEVEL)

    @classmethod
    def unpacked(cls, archive: bytes, *, digest: str) -> "TextFiles":
        """Raises WireError for what is no archive, is too large, has other names than those of
        such files, or another digest."""
        unpacking = zlib.decompressobj()
        try:
            packed = unpacking.decompress(archive, MAX_ARCHIVE_BYTES)
            if not unpacking.eof:
                raise WireError(f"text files: cut short, or more than {MAX_ARCHIVE_BYTES} bytes")
            files = cls(_files.decode(packed))
        except (zlib.error, msgspec.MsgspecError) as error:
            raise WireError(f"text files: {error}") from error
        pooling = _pooling_file(files.files)
        for name in files.files:
            if not _NAME.fullmatch(name) and name != pooling:
                raise WireError(f"text files: {name!r:.100} is none of them")
        if files.digest != digest:
            raise WireError(f"text files: their digest is {files.digest}, not {digest}")
        return files

    def write(self, folder: Path) -> None:
        """Into an existing folder. Raises OSError."""
        for name, content in self.files.items():
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)


def pooling_file(modules: object) -> str:
    """Where `modules.json`, parsed, says that a checkpoint has how it pools; "" where it names no
    folder in the checkpoint's own."""
    match modules:
        case [_, {"path": str(folder)}, *_] if _FOLDER.fullmatch(folder):
            return f"{folder}/config.json"
    return ""


def _pooling_file(files: Mapping[str, bytes]) -> str:
    """As `pooling_file`; "" too where there are no such modules."""
    try:
        return pooling_file(json.loads(files.get("modules.json", b"[]")))
    except (ValueError, RecursionError):
        return ""  # whoever reads it says so


def _read(file: Path) -> bytes:
    try:
        return read_whole(file, max_bytes=MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
