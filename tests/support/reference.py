"""Hugging Face transformers as the oracle of our models."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch


def reference(path: Path) -> Any:
    """The model of a checkpoint, in float32, its attention spelt out in torch."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
