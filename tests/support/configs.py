"""Configurations as files: written, read, and refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.models.config import ModelConfig, read_config
from protocol.errors import CheckpointError
from tools.make_checkpoint import Shape


def read(path: Path, config: dict[str, Any], *, max_model_len: int | None = None) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(config))
    return read_config(path, max_model_len=max_model_len)


def config(family: str = "llama", /, **changes: Any) -> dict[str, Any]:
    return Shape(family=family).config() | changes


def refused(path: Path, raw: dict[str, Any], *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(path, raw)
    for word in ("config.json", *words):
        assert word in str(caught.value)
