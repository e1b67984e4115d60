"""What lies in a folder in place of the files that Baton reads, and what would make them of it.

Goes by the names of files, and by the first bytes of one that cannot be read. Converts nothing.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import CheckpointError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
_AGAIN = "download it again (hf download ORG/NAME --local-dir {place})"
_SAVE = (
    'write it with transformers: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{place}', dtype='auto'{extra}).save_pretrained('{place}')\""
)
_SAVE_TOKENIZER = (
    'write it with transformers: python -c "from transformers import AutoTokenizer as T; '
    "T.from_pretrained('{place}').save_pretrained('{place}')\""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    pattern: str
    """Of a file's path below the folder; the first group that is not empty is {found}."""
    what: str
    remedy: str = "take the model's repository with safetensors instead"
    extra: str = ""
    """Further arguments of from_pretrained."""
    alone: bool = False
    """It is published without a config.json."""


_OF_WEIGHTS = (
    _Kind(
        pattern=r"(adapter_config\.json)", what="a PEFT adapter, not a model", alone=True,
        remedy='merge it into its base with peft: python -c "from peft import '
        "AutoPeftModelForCausalLM as M; M.from_pretrained('{place}').merge_and_unload()"
        ".save_pretrained('MERGED')\", then copy the tokenizer's files there",
    ),
    _Kind(
        pattern=r"(.*\.(?:incomplete|part|crdownload|aria2))", alone=True,
        what="a download that has not ended: {found}", remedy=_AGAIN,
    ),
    _Kind(
        pattern=r"model-\d+-of-\d+\.safetensors", remedy=_AGAIN,
        what=f"no {WEIGHTS_INDEX} beside the shards",
    ),
    _Kind(
        pattern=r"model\.(?:safetensors\.index\.)?([\w-]+?)(?:-\d+-of-\d+)?\.(?:json|safetensors)",
        what="the variant {found} alone", remedy=_SAVE, extra=", variant='{found}'",
    ),
    _Kind(
        pattern=r"(?:original/)?(consolidated.*\.(?:safetensors|pth)|params\.json)", alone=True,
        what="{found}, as Mistral and Meta name weights of their own form",
    ),
    _Kind(pattern=r"(pytorch_model.*\.bin)", what="{found}, a pickle", remedy=_SAVE),
    _Kind(
        pattern=r"(.*\.gguf)", what="{found}, of llama.cpp", alone=True,
        remedy="take the model's repository with safetensors instead, or with transformers and "
        "gguf " + _SAVE, extra=", gguf_file='{found}'",
    ),
    _Kind(pattern=r"(.*\.onnx)", what="{found}, an ONNX graph", alone=True),
    _Kind(pattern=r"(.*\.npz)", what="{found}, of MLX", alone=True),
    _Kind(pattern=r"(openvino.*\.xml)", what="{found}, an OpenVINO graph", alone=True),
    _Kind(pattern=r"(.*\.engine)", what="{found}, a TensorRT engine", alone=True),
    _Kind(
        pattern=r"(tf_model\.h5|flax_model\.msgpack|rust_model\.ot|.*\.ckpt.*)",
        what="{found}, of another framework",
    ),
    _Kind(
        pattern=r"(.*\.(?:bin|pt|pth|distcp|nemo|tar|zip|gz))", what="{found}, of another form",
        alone=True,
    ),
    _Kind(
        pattern=r"(?!model\.)([^/]+\.safetensors)", what="{found}",
        remedy=f"if that is the whole model, name it {WEIGHTS}",
    ),
    _Kind(
        pattern=r"([^/]+)/config\.json", what="a checkpoint in its folder {found}", alone=True,
        remedy="give {place}/{found}",
    ),
)  # fmt: skip
_OF_TOKENIZER = (
    _Kind(
        pattern=r"((?:tokenizer|spiece|sentencepiece.*)\.model)", what="{found}, of SentencePiece",
        remedy=_SAVE_TOKENIZER + " (needs sentencepiece)",
    ),
    _Kind(
        pattern=r"(tekken\.json)", what="{found}, of Mistral's own form",
        remedy=_SAVE_TOKENIZER + " (needs mistral-common)",
    ),
    _Kind(
        pattern=r"(.*\.tiktoken|vocab\.json|vocab\.txt|merges\.txt)",
        what="{found}, of the slow form", remedy=_SAVE_TOKENIZER,
    ),
)  # fmt: skip
_BYTES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run git lfs pull in its folder"),
    (b"GGUF", "a GGUF file: take the model's safetensors"),
    (b"PK\x03\x04", "a pickle of torch: save the model with transformers"),
    (b"<", "a web page, not the file: download it again"),
    (b"Found. Redirecting", "a redirect, not the file: download it again, following redirects"),
)


def missing(file: Path) -> CheckpointError:
    """For a file that a checkpoint must have and has not."""
    folder = file.parent
    if file.is_symlink():
        goal = file.readlink()
        return CheckpointError(
            f"{file}: missing: it is a link to {goal}, which is not there; {again(folder)}"
        )
    return explain_missing(file.name, _names(folder), place=str(folder))


def explain_missing(file: str, names: Collection[str], *, place: str) -> CheckpointError:
    """That `file` is not among the `names` of `place`: what is there, and what would work."""
    head = f"{place}/{file}: missing"
    kinds = _OF_TOKENIZER if file == TOKENIZER else _OF_WEIGHTS
    for kind in kinds:
        found = _first(kind, names) if kind.alone or file != "config.json" else None
        if found is not None:
            given = {"place": place, "found": found, "extra": kind.extra.format(found=found)}
            what, remedy = kind.what.format(**given), kind.remedy.format(**given)
            return CheckpointError(f"{head}; there is {what}: {remedy}")
    what = "the folder is empty" if not names else "nor is there anything in its place"
    return CheckpointError(f"{head}; {what}: {again(place)}")


def again(place: object) -> str:
    """Advice for a checkpoint of which some is not there."""
    snapshot = Path(str(place))
    if snapshot.parent.name == "snapshots":  # of the hub's cache, which is its library's to fill
        name = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return f"download it again (hf download {name} --revision {snapshot.name})"
    return _AGAIN.format(place=place)


def check_readable(file: Path) -> None:
    """Raises CheckpointError for a file that is by its first bytes something else."""
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
    except OSError:
        return  # whoever reads it says why
    for mark, what in _BYTES:
        if head.startswith(mark):
            raise CheckpointError(f"{file}: is {what}")


def _first(kind: _Kind, names: Iterable[str]) -> str | None:
    matches = (re.fullmatch(kind.pattern, name) for name in sorted(names))
    found = next((match for match in matches if match), None)
    return found and next((group for group in found.groups() if group), found[0])


def _names(folder: Path) -> list[str]:
    """Of files in the folder and one below."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    try:
        for path in folder.iterdir():
            if path.is_dir():
                yield from (f"{path.name}/{below.name}" for below in path.iterdir())
            else:
                yield path.name
    except OSError:
        return
