"""Reads the safetensors of a Hugging Face directory, one tensor at a time.

Checks every file against its own header before anything is read, so a truncated or incomplete
checkpoint fails at once with CheckpointError naming file and tensor. The format is read by hand:
the `safetensors` library says neither which tensor a truncated file ends in nor gives the raw
bytes, which are the model's revision. It writes, in `tools`.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from protocol.errors import CheckpointError
from protocol.text.json_fields import Fields
from protocol.text.model_files import WEIGHTS, WEIGHTS_INDEX, again, check_readable, missing
from protocol.text.text_config import read_json_object, read_json_object_if_there

MAX_HEADER_BYTES = 100 << 20  # as the safetensors library
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
BYTES = {"U8": torch.uint8}
DTYPES = FLOATS | BYTES
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class Checkpoint:
    """The tensors of one directory, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: Mapping[str, StoredTensor] = _tensors(path)
        self._digests: dict[tuple[str, int], bytes] = {}
        """Of the bytes read so far, by tensor and row of its first dim; -1: all rows."""

    def revision(self, config_text: bytes) -> str:
        """Stable digest of the configuration and of the bytes of every tensor read so far.

        Neither the dtype they were converted to nor their spread over files is part of it.
        """
        digest = hashlib.sha256(config_text)
        for name, row in sorted(self._digests):
            stored = self.tensors[name]
            digest.update(json.dumps([name, stored.dtype, stored.shape]).encode())
            digest.update(self._digests[name, row])
        return digest.hexdigest()[:32]

    def stored(self, name: str, *, shape: tuple[int, ...], quantised: bool = False) -> StoredTensor:
        """The tensor's place; raises CheckpointError when missing, of another shape, or of a dtype
        that is not understood: `quantised` are bytes, all others are floats."""
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}, "
                f"config.json asks for {list(shape)}"
            )
        known = BYTES if quantised else FLOATS
        if stored.dtype not in known:
            raise CheckpointError(
                f"{stored.file}: tensor {name} is {stored.dtype}; supported: {', '.join(known)}"
            )
        return stored

    def same_bytes(self, one: str, other: str) -> bool:
        """Of two that were read whole."""
        dtypes = self.tensors[one].dtype, self.tensors[other].dtype
        return dtypes[0] == dtypes[1] and self._digests[one, -1] == self._digests[other, -1]

    def read(
        self, name: str, *, shape: tuple[int, ...], dtype: torch.dtype, row: int | None = None
    ) -> Tensor:
        """A private copy of the tensor of `shape`, converted to `dtype`; with `row`, of that one
        row of its first dim. uint8 is read as it is."""
        stored = self.stored(name, shape=shape, quantised=dtype == torch.uint8)
        num_bytes = stored.num_bytes if row is None else stored.num_bytes // shape[0]
        buffer = bytearray(num_bytes)
        try:
            with stored.file.open("rb") as file:
                file.seek(stored.offset + (row or 0) * num_bytes)
                num_read = file.readinto(buffer)
        except OSError as error:
            raise CheckpointError(f"{stored.file}: tensor {name}: {error.strerror}") from error
        if num_read != num_bytes:
            raise CheckpointError(f"{stored.file}: ends inside tensor {name}")
        self._digests[name, -1 if row is None else row] = xxhash.xxh3_128_digest(buffer)
        tensor = torch.frombuffer(buffer, dtype=DTYPES[stored.dtype])
        return tensor.view(shape if row is None else shape[1:]).to(dtype)


def _tensors(path: Path) -> dict[str, StoredTensor]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: is not a directory")
    file = _weights_file(path)
    return _sharded(path, file) if file.name.endswith(".index.json") else _header(file)


def _weights_file(path: Path) -> Path:
    """The one that transformers takes: `transformers_weights` of config.json names it, or a single
    file goes before an index."""
    named = read_json_object_if_there(path / "config.json").get("transformers_weights")
    if named is not None:
        if not isinstance(named, str) or Path(named).name != named:
            raise CheckpointError(f"{path}: transformers_weights: {named!r} is not a file name")
        return path / named
    if (adapter := next(path.glob("adapter_model.*"), None)) is not None:
        raise CheckpointError(
            f"{adapter}: is an adapter beside the model, which transformers with peft would apply "
            "and Baton cannot: merge it, or move it away"
        )
    single, index = path / WEIGHTS, path / WEIGHTS_INDEX
    if not single.is_file() and index.is_file():
        return index
    if index.is_file():
        log.warning("index of shards ignored", extra={"index": str(index), **_STALE})
    return single


_STALE = {
    "why": f"{WEIGHTS} lies beside it, which transformers takes too",
    "remedy": "remove the one that is not the model",
}


def _sharded(path: Path, index: Path) -> dict[str, StoredTensor]:
    names = Fields(index, read_json_object(index)).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for shard in names.values():
        if not isinstance(shard, str) or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise CheckpointError(f"{index}: {shard!r} is not a file name within its folder")
    shards = sorted(set(names.values()))
    lost = [shard for shard in shards if not os.path.isfile(path / shard)]
    if lost:
        raise CheckpointError(
            f"{path / lost[0]}: missing; of {len(shards)} shards {len(lost)} are: "
            f"{', '.join(lost[:8])}; {again(path)}"
        )
    tensors = {name: stored for shard in shards for name, stored in _header(path / shard).items()}
    for name, shard in names.items():
        if name not in tensors:
            raise CheckpointError(
                f"{path / shard}: tensor {name} is missing (named by {index.name})"
            )
    return tensors


def _header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, its bytes checked to lie inside it."""
    if not file.is_file():
        raise missing(file)
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                check_readable(file)
                raise CheckpointError(
                    f"{file}: is truncated or not safetensors; {again(file.parent)}"
                )
            raw = json.loads(stream.read(header_bytes))
            if not isinstance(raw, dict):
                raise CheckpointError(f"{file}: header is no JSON object")
    except FileNotFoundError as error:
        raise missing(file) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: header cannot be read: {error}") from error
    tensors = {}
    for name, entry in raw.items():
        if name != "__metadata__":
            tensors[name] = _entry(file, name, entry, start=8 + header_bytes, end=file_bytes)
    return tensors


def _entry(file: Path, name: str, entry: object, *, start: int, end: int) -> StoredTensor:
    try:
        assert isinstance(entry, dict)
        first, last = entry["data_offsets"]
        stored = StoredTensor(
            file=file,
            dtype=str(entry["dtype"]),
            shape=tuple(int(size) for size in entry["shape"]),
            offset=start + int(first),
            num_bytes=int(last) - int(first),
        )
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: tensor {name}: malformed header entry") from error
    if stored.offset < start or stored.offset + stored.num_bytes > end:
        raise CheckpointError(
            f"{file}: is truncated: it ends before the end of tensor {name}; {again(file.parent)}"
        )
    dtype = DTYPES.get(stored.dtype)
    if dtype and prod(stored.shape) * dtype.itemsize != stored.num_bytes:
        raise CheckpointError(f"{file}: tensor {name}: its size does not fit its shape")
    return stored
