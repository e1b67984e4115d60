"""What a checkpoint's files say of its tokeniser, for clients that make prompts themselves."""

from pathlib import Path
from typing import Any

from protocol.text.template.files import special_tokens, template_sources
from protocol.text.text_config import read_json_object_if_there


def describe_tokenizer(path: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the special tokens as texts and the chat template wherever that
    lies; of several templates `default`. Raises CheckpointError."""
    config = read_json_object_if_there(path / "tokenizer_config.json")
    templates = template_sources(path, config)
    described = {**config, **special_tokens(path, config)}
    described.pop("chat_template", None)
    if source := templates.get("default", next(iter(templates.values()), None)):
        described["chat_template"] = source.text
    return described
