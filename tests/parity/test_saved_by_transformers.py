"""What transformers itself saves, in the published form and in its own, is read as it means it."""

# Shapes: T tokens, V vocabulary.

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_shapes import SHAPES
from support.forwards import pool_for, split_logits
from support.reference import reference
from support.wrapped_shapes import write_shape
from torch import Tensor

from engine.checkpoint.load import load_model

TOLERANCE = 1e-4
FUSED = (
    "mixtral",
    "qwen2-moe-some-layers-dense",
    "qwen3-moe",
    "granite-moe-shared",
    "phimoe",
)
"""Families whose experts transformers 5 fuses in memory, and saves so when asked to."""
PLAIN = (
    "llama-llama3-rope",
    "qwen3-tied-bias-window",
    "gemma2-window",
    "gemma3",
    "olmo2",
    "phi3-longrope-within-the-original-context",
    "granite-biases-tied",
    "gpt-oss-yarn",
    "granite-4",
    "exaone4",
    "smollm3",
    "ministral3",
    "cohere2-named-layers",
    "stablelm-parallel-norms-of-heads",
)
WRAPPING = ("mistral3", "qwen2.5-vl")
"""Their published names differ from those of transformers 5."""
LONG = pytest.mark.long
LATER = [
    pytest.param(name, marks=LONG)
    for name in (
        "granite-moe",
        "granite-4-experts-no-rope",
        "qwen2.5-vl-yarn-named-layers",
        "qwen3-vl",
        "gemma-legacy-activation-bias",
        "olmo3-named-layers-legacy-rope",
        "seed-oss",
        "ministral",
        "qwen2-vl",
        "mistral3-of-ministral3",
        "glm4-yarn",
        "starcoder2",
        "cohere-norms-of-heads",
    )
]
TOKEN_IDS = torch.randint(300, (24,), generator=torch.Generator().manual_seed(5))


def error(path: Path, hf: Any) -> float:
    """Relative to the largest logit."""
    with torch.inference_mode():
        expected_TV: Tensor = hf(TOKEN_IDS[None]).logits[0]
    model = load_model(path, dtype="float32", native=False)
    pool = pool_for(model, num_blocks=128)
    got_TV = split_logits(model, pool, TOKEN_IDS.tolist(), sizes=[20, 4], first_block=127)
    return float((got_TV - expected_TV).abs().max() / expected_TV.abs().max())


@pytest.mark.parametrize("name", [*PLAIN, *FUSED, *WRAPPING, *LATER])
def test_a_model_saved_in_the_published_form_is_read(tmp_path: Path, name: str) -> None:
    write_shape(tmp_path / "made", name)
    hf = reference(tmp_path / "made")
    hf.save_pretrained(tmp_path / "saved")
    assert error(tmp_path / "saved", hf) < TOLERANCE


@pytest.mark.parametrize("name", [*FUSED, *WRAPPING, *LATER[:4]])
def test_a_model_saved_in_the_form_of_transformers_5_is_read(tmp_path: Path, name: str) -> None:
    write_shape(tmp_path / "made", name)
    hf = reference(tmp_path / "made")
    hf.save_pretrained(tmp_path / "saved", save_original_format=False)
    assert error(tmp_path / "saved", hf) < TOLERANCE


@pytest.mark.parametrize("name", ["mistral3", pytest.param("mistral3-of-ministral3", marks=LONG)])
def test_a_multimodal_model_that_names_no_tie_has_the_head_that_is_stored(
    tmp_path: Path, name: str
) -> None:
    write_shape(tmp_path, name)
    raw = json.loads((tmp_path / "config.json").read_text())
    for part in (raw, raw["text_config"]):
        del part["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert error(tmp_path, reference(tmp_path)) < TOLERANCE


@pytest.mark.parametrize("published", [True, False])
def test_the_text_of_a_multimodal_gemma_is_read(tmp_path: Path, published: bool) -> None:
    transformers: Any = importlib.import_module("transformers")
    text = SHAPES["gemma3"].config() | {"pad_token_id": 0}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, attn_implementation="eager"
    )
    torch.manual_seed(3)
    hf = transformers.Gemma3ForConditionalGeneration(config).eval()
    hf.save_pretrained(tmp_path, save_original_format=published)
    assert error(tmp_path, hf) < TOLERANCE
