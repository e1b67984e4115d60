"""A checkpoint's JSON files: where they describe the text model, and what they leave to
transformers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import CheckpointError
from protocol.text.model_files import check_readable, read_whole

INHERITED = ("eos_token_id", "tie_word_embeddings")
"""Keys beside `text_config` that hold for the text model where it names none itself."""
TEXT_TYPES: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
}
"""By the wrapper's `model_type`: what a `text_config` is that does not say."""
TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma3_text": {"vocab_size": 262_208, "max_position_embeddings": 131_072}
}
"""By `model_type`: what absent keys mean. Published multimodal Gemma 3 leaves these out."""


@dataclass(frozen=True, slots=True)
class JsonFile:
    """An object, and the bytes it was read from."""

    file: Path
    text: bytes
    value: dict[str, Any]


def read_json_file(file: Path) -> JsonFile:
    """CheckpointError, which names the file, for one that is missing, unreadable or no object."""
    text = read_whole(file)
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        check_readable(file)
        raise CheckpointError(f"{file}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: is not a JSON object")
    return JsonFile(file, text, value)


def read_json_object(file: Path) -> dict[str, Any]:
    return read_json_file(file).value


def read_json_object_if_there(file: Path) -> dict[str, Any]:
    """As `read_json_object`, and empty for a file that is not there."""
    return read_json_object(file) if file.exists() else {}


def inherit(config: Mapping[str, object], text: Mapping[str, object]) -> dict[str, object]:
    """`text`, the `text_config` of `config`, with the keys that it inherits."""
    inherited = {key: config[key] for key in INHERITED if key in config and text.get(key) is None}
    of_wrapper = TEXT_TYPES.get(str(config.get("model_type")))
    if of_wrapper is not None and text.get("model_type") is None:
        inherited["model_type"] = of_wrapper
    return {**text, **inherited}


def text_config(config: Mapping[str, object]) -> dict[str, object]:
    """The part of a multimodal model's config that describes its text, or the whole of another's;
    absent sizes filled in."""
    text = config.get("text_config")
    found = inherit(config, text) if isinstance(text, dict) and text else dict(config)
    sizes = TEXT_DEFAULTS.get(str(found.get("model_type")), {})
    return found | {key: size for key, size in sizes.items() if found.get(key) is None}
