"""Hugging Face transformers as the oracle of our models."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch

from engine.models.wrappers import WRAPPERS


def reference(path: Path) -> Any:
    """The model of a checkpoint, in float32, its attention spelt out in torch."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.from_pretrained(path)
        auto = transformers.AutoModelForCausalLM
        if config.model_type in WRAPPERS:
            auto = transformers.AutoModelForImageTextToText
        return auto.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
