"""Configurations as they are published: accepted and equal to transformers, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import read, refused
from support.forwards import pool_for, split_logits
from support.published import REFUSED, SERVED, shrunk, text_of, write_published
from support.reference import reference

from engine.checkpoint.load import load_model
from engine.models.config import read_config

TOKENS, TOLERANCE = 24, 1e-4
LONG_AFTER = frozenset({"Phi-3.5-mini-instruct", "Phi-4-mini-instruct", "Phi-3.5-MoE-instruct"})
"""LongRoPE: transformers takes the short factors for a short sequence."""

LIKE_ANOTHER = frozenset(
    {
        "Llama-2-7b", "CodeLlama-34b", "TinyLlama-1.1B-Chat-v0.4", "TinyLlama-1.1B-Chat-v1.0",
        "Llama-3-8B", "Llama-3.1-8B-Instruct", "SmolLM-360M", "deepseek-coder-6.7b-instruct",
        "Yi-6B", "DeepSeek-R1-Distill-Llama-8B", "Mistral-7B-Instruct-v0.3", "zephyr-7b-beta",
        "Qwen1.5-1.8B-Chat", "Qwen2-0.5B-Instruct", "Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct",
        "Qwen3-4B-Instruct-2507", "Qwen3-30B-A3B", "gemma-2-2b-it", "gemma-2-2b-jpn-it",
        "granite-3.1-2b-instruct", "OLMo-2-1124-7B", "gemma-2-27b", "Mistral-Nemo-Base-2407",
        "DeepSeek-R1-Distill-Qwen-7B", "Mixtral-8x22B-Instruct-v0.1", "Mixtral-8x7B-v0.1", "phi-4",
        "c4ai-command-r-v01", "glm-4-9b-chat-hf", "EXAONE-4.0-1.2B", "gemma-1.1-7b-it",
        "gemma-3-27b-it",
    }
)  # fmt: skip
"""Whose keys are, but for sizes, those of one that every run computes."""


def _cases() -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.long] if name in LIKE_ANOTHER else [])
        for name in SERVED
    ]


@pytest.mark.parametrize("name", _cases())
def test_a_published_config_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    raw = shrunk(SERVED[name])
    write_published(tmp_path, raw)
    max_model_len = raw["original_max_position_embeddings"] if name in LONG_AFTER else None
    config = read_config(tmp_path, max_model_len=max_model_len)
    model = load_model(tmp_path, dtype="float32", native=False, config=config)
    token_ids = torch.randint(
        text_of(raw)["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(3)
    )
    with torch.inference_mode():
        expected_TV = reference(tmp_path)(token_ids[None]).logits[0]
    pool = pool_for(model, num_blocks=16)
    got_TV = split_logits(model, pool, token_ids.tolist(), sizes=[17, 7], first_block=15)
    assert (got_TV - expected_TV).abs().max() < TOLERANCE * expected_TV.abs().max()


@pytest.mark.parametrize("name", SERVED)
def test_a_published_config_is_read_at_its_own_size(name: str, tmp_path: Path) -> None:
    original, raw = SERVED[name], text_of(SERVED[name])
    layers = raw["num_hidden_layers"]
    rope = raw.get("rope_scaling") or {}
    whole: dict[str, Any] = {}
    if "layer_types" in raw:
        whole["layer_types"] = (raw["layer_types"] * layers)[:layers]
    if "long_factor" in rope:
        pairs = int(raw["hidden_size"] / raw["num_attention_heads"] / 2)
        pairs = int(pairs * raw.get("partial_rotary_factor", 1.0))
        factors = ("long_factor", "short_factor")
        whole["rope_scaling"] = rope | {key: (rope[key] * pairs)[:pairs] for key in factors}
    got = read(tmp_path, original | whole)
    assert (got.num_layers, got.vocab_size) == (layers, raw.get("vocab_size", 262_208))


CONTEXTS = {
    "vicuna-7b-v1.5-16k": 16_384,
    "Yarn-Llama-2-7b-128k": 131_072,
    "Qwen2.5-Coder-32B-Instruct with YaRN": 131_072,
    "Qwen3-8B with YaRN": 131_072,
    "gpt-oss-20b in bfloat16": 131_072,
    "Phi-3.5-mini-instruct": 131_072,
    "Llama-3.1-8B-Instruct": 131_072,
    "gemma-3-4b-it": 131_072,
    "gemma-3-27b-it": 131_072,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_published_config_gives_the_context_that_its_card_names(
    name: str, tmp_path: Path
) -> None:
    assert read(tmp_path, shrunk(SERVED[name])).max_context_tokens == CONTEXTS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_published_config_that_asks_for_more_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    case = REFUSED[name]
    refused(tmp_path, shrunk(case["config"]), f" {case['for']} ")


def test_the_data_is_as_written(tmp_path: Path) -> None:
    write_published(tmp_path, shrunk(SERVED["SmolLM2-135M-Instruct"]))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.keys() == SERVED["SmolLM2-135M-Instruct"].keys()
