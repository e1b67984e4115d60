"""Where a checkpoint keeps its chat templates and the special tokens they name, read in the order
transformers reads them.

Of several named templates only `default` and `tool_use` are ever asked for.
"""

from collections.abc import Mapping
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from protocol.errors import CheckpointError
from protocol.text.model_files import read_whole
from protocol.text.text_config import read_json_object_if_there

SPECIAL_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)


class TemplateSource(NamedTuple):
    text: str
    file: Path | None = None


def template_sources(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, TemplateSource]:
    """By name, `default` first of all; empty for a checkpoint without any."""
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted(path.glob("additional_chat_templates/*.jinja"))}
    if found := {name: _read(file) for name, file in files.items() if file.is_file()}:
        return found
    if given := tokenizer_config.get("chat_template"):
        return _named(path / "tokenizer_config.json", given)
    for name in ("chat_template.json", "processor_config.json"):  # older multimodal checkpoints
        if given := read_json_object_if_there(path / name).get("chat_template"):
            return _named(path / name, given)
    return {}


def special_tokens(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `image_token`, ... as text; those the checkpoint lacks are absent."""
    legacy = "added_tokens_decoder" not in tokenizer_config
    mapped = read_json_object_if_there(path / "special_tokens_map.json") if legacy else {}
    named = {**tokenizer_config, **mapped}
    own = {key: token for key, token in named.items() if key.endswith("_token")}
    own = {key: token for key, token in own.items() if isinstance(token, str | dict)}
    extra = named.get("extra_special_tokens")
    wanted = {key: named.get(key) for key in SPECIAL_TOKENS} | own
    wanted |= extra if isinstance(extra, dict) else {}
    texts = {}
    for key, token in wanted.items():
        file = "special_tokens_map.json" if key in mapped else "tokenizer_config.json"
        texts[key] = token_text(path / file, key, token)
    return {key: text for key, text in texts.items() if text}


def token_text(file: Path, name: str, token: object) -> str:
    """A special token as a checkpoint's file gives it, alone or with options; "" for none."""
    text: Any = token.get("content") if isinstance(token, dict) else token
    if text and not isinstance(text, str):
        raise CheckpointError(f"{file}: {name} is {text!r}, not a text")
    return text or ""


def _read(file: Path) -> TemplateSource:
    try:
        text = TextIOWrapper(BytesIO(read_whole(file)), "utf-8-sig").read()
        return TemplateSource(text, file)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _named(file: Path, given: object) -> dict[str, TemplateSource]:
    """One template, a list of named ones, or an object of them."""
    match given:
        case str():
            pairs = [("default", given)]
        case list():
            pairs = [_pair(file, entry) for entry in given]
        case dict():
            pairs = [_pair(file, {"name": key, "template": of}) for key, of in given.items()]
        case _:
            pairs = [_pair(file, given)]
    return {name: TemplateSource(text, file) for name, text in pairs}


def _pair(file: Path, entry: object) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(source)}:
            return name, source
        case _:
            raise CheckpointError(f"{file}: chat_template has {repr(entry)[:100]}")
