"""What lies in a folder in place of the files that Baton reads, and what would make them of it.

Goes by the names of files, and by the first bytes of one that cannot be read. Converts nothing.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import CheckpointError

MAX_JSON_BYTES = 64 << 20
"""Of one of a checkpoint's files but `tokenizer.json`: the largest index published has 10 MB."""
MAX_TOKENIZER_BYTES = 256 << 20
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
_AGAIN = "download it again (hf download ORG/NAME --local-dir {place})"
_INSTEAD = "take the model's repository with safetensors instead"
_SAVE = (
    'write it with transformers: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{place}', dtype='auto'{extra}).save_pretrained('{place}')\""
)
_SAVE_TOKENIZER = (
    'write it with transformers: python -c "from transformers import AutoTokenizer as T; '
    "T.from_pretrained('{place}').save_pretrained('{place}')\""
)
_MERGE = (
    'merge it with peft: python -c "from peft import AutoPeftModelForCausalLM as M; '
    "M.from_pretrained('{place}').merge_and_unload().save_pretrained('MERGED')\", and copy the "
    "tokenizer's files there"
)
_COPY = (
    "copy config.json and the tokenizer's files of the same model, perhaps in the folder above, "
    "to {{place}}{below}, and give that"
)


@dataclass(frozen=True, slots=True)
class _Kind:
    pattern: str
    """Of a file's path below the folder; its first group that is not empty is {found}."""
    what: str
    remedy: str = _INSTEAD
    extra: str = ""
    """Further arguments of from_pretrained."""


_WITHOUT_CONFIG = (
    _Kind(r"(adapter_config\.json)", "a PEFT adapter, not a model", _MERGE),
    _Kind(r"(.*\.(?:incomplete|part|crdownload|aria2))", "{found}, a part of a download", _AGAIN),
    _Kind(r"(?:original/)?(consolidated.*\.(?:safetensors|pth)|params\.json)",
          "{found}, as Mistral and Meta name weights of their own form"),
    _Kind(r"(.*\.gguf)", "{found}, of llama.cpp",
          f"{_INSTEAD}, or with transformers and gguf {_SAVE}", ", gguf_file='{found}'"),
    _Kind(r"(.*\.onnx)", "{found}, an ONNX graph"),
    _Kind(r"(.*\.npz)", "{found}, of MLX"),
    _Kind(r"(openvino.*\.xml|.*\.engine)", "{found}, a graph for OpenVINO or TensorRT"),
    _Kind(r"([^/]+)/config\.json", "a checkpoint in its folder {found}", "give {place}/{found}"),
)  # fmt: skip
_OF_WEIGHTS = (
    *_WITHOUT_CONFIG[:2],
    _Kind(r"model-\d+-of-\d+\.safetensors", f"no {WEIGHTS_INDEX} beside the shards", _AGAIN),
    _Kind(r"model\.(?:safetensors\.index\.)?([\w-]+?)(?:-\d+-of-\d+)?\.(?:json|safetensors)",
          "the variant {found} alone", _SAVE, ", variant='{found}'"),
    _Kind(r"(pytorch_model.*\.bin)", "{found}, a pickle", _SAVE),
    *_WITHOUT_CONFIG[2:],
    _Kind(r"(tf_model\.h5|flax_model\.msgpack|rust_model\.ot|.*\.ckpt.*)",
          "{found}, of another framework"),
    _Kind(r"(.*\.(?:bin|pt|pth|distcp|nemo|tar|zip|gz))", "{found}, of another form"),
    _Kind(r"(?i)([^/]*(?:gptq|awq|exl2|fp8|nf4|[2-8]-?bit|int[48]|w[48]a\d)[^/]*\.safetensors)",
          "{found}, which is quantised by its name", "take the checkpoint that is not quantised"),
    _Kind(r"([^/]+)/(?:model|pytorch_model)[^/]*\.(?:safetensors|bin)",
          "weights in its folder {found}", _COPY.format(below="/{found}")),
    _Kind(r"(?!model\.)([^/]+\.safetensors)", "{found}",
          f"if that is the whole model, name it {WEIGHTS}"),
)  # fmt: skip
_OF_TOKENIZER = (
    _Kind(r"((?:tokenizer|spiece|sentencepiece.*)\.model)", "{found}, of SentencePiece",
          f"{_SAVE_TOKENIZER} (needs sentencepiece)"),
    _Kind(r"(tekken\.json)", "{found}, of Mistral's form", f"{_SAVE_TOKENIZER} (mistral-common)"),
    _Kind(r"(.*\.tiktoken|vocab\.json|vocab\.txt|merges\.txt)", "{found}, of the slow form",
          _SAVE_TOKENIZER),
)  # fmt: skip
_ALONE = _Kind(r"([^/]+\.(?:safetensors|bin))", "{found} without it", _COPY.format(below=""))
_KINDS = {"config.json": (*_WITHOUT_CONFIG, _ALONE), TOKENIZER: _OF_TOKENIZER}
_BYTES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run git lfs pull in its folder"),
    (b"GGUF", "a GGUF file: take the model's safetensors"),
    (b"PK\x03\x04", "a pickle of torch: save the model with transformers"),
    (b"<", "a web page, not the file: download it again"),
    (b"Found. Redirecting", "a redirect, not the file: download it again, following redirects"),
)


def read_whole(file: Path, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """CheckpointError for a file that is missing, unreadable, too large, or no regular one."""
    if not file.is_file():
        raise missing(file)
    try:
        with file.open("rb") as stream:
            text = stream.read(min(file.stat().st_size, max_bytes) + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if len(text) > max_bytes:
        raise CheckpointError(f"{file}: must have at most {max_bytes >> 20} MiB")
    return text


def missing(file: Path) -> CheckpointError:
    """For a file that a checkpoint must have and has not."""
    folder = file.parent
    if file.exists():
        return CheckpointError(f"{file}: is not a regular file")
    if file.is_symlink():
        goal = file.readlink()
        return CheckpointError(
            f"{file}: missing: it is a link to {goal}, which is not there; {again(folder)}"
        )
    return explain_missing(file.name, list(_walk(folder)), place=str(folder))


def explain_missing(file: str, names: Collection[str], *, place: str) -> CheckpointError:
    """That `file` is not among the `names` of `place`: what is there, and what would work."""
    head = f"{place}/{file}: missing"
    for kind in _KINDS.get(file, _OF_WEIGHTS):
        if (found := _first(kind, names)) is not None:
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
    """Raises CheckpointError for a file that is by its first bytes something else, or none."""
    if file.exists() and not file.is_file():
        raise missing(file)
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


def _walk(folder: Path) -> Iterator[str]:
    """Names of files in the folder and one below."""
    try:
        for path in folder.iterdir():
            if path.is_dir():
                yield from (f"{path.name}/{below.name}" for below in path.iterdir())
            else:
                yield path.name
    except OSError:
        return
