"""Which layers turn, slide, have experts or keep a state, and what the text of a multimodal model
is: by the keys that published checkpoints have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import config, read, refused
from support.family_shapes import FULL
from support.published import SERVED, shrunk
from support.wrapped_shapes import WRAPPED

from engine.models.rope import QueryGrowth

YARN_3 = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16_384,
    "rope_theta": 1_000_000.0, "rope_type": "yarn", "type": "yarn",
}  # fmt: skip


def turning(path: Path, family: str, **changes: Any) -> list[bool]:
    changes = {"num_hidden_layers": 4, "head_dim": 16} | changes
    return [layer.rope is not None for layer in read(path, config(family, **changes)).layers]


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("smollm3", {}, [True, True, True, False]),
        ("smollm3", {"no_rope_layer_interval": 2}, [True, False, True, False]),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1, 0]}, [False, True, True, True]),
        ("exaone4", {}, [True, True, True, False]),
        ("exaone4", {"sliding_window": None}, [True] * 4),
        ("granitemoehybrid", {"layer_types": [FULL] * 4}, [False] * 4),
        (
            "granitemoehybrid",
            {"layer_types": [FULL] * 4, "position_embedding_type": "rope"},
            [True] * 4,
        ),
        ("llama", {}, [True] * 4),
    ],
)
def test_a_layer_turns_its_heads_where_its_family_says(
    tmp_path: Path, family: str, changes: dict[str, Any], expected: list[bool]
) -> None:
    assert turning(tmp_path, family, **changes) == expected


def test_a_smollm_window_is_on_the_layers_that_do_not_turn(tmp_path: Path) -> None:
    raw = config("smollm3", num_hidden_layers=4, use_sliding_window=True, sliding_window=8)
    assert read(tmp_path, raw).windows == (None, None, None, 8)


def test_an_olmo_3_stretches_the_rope_of_layers_without_a_window_only(tmp_path: Path) -> None:
    got = read(tmp_path, shrunk(SERVED["Olmo-3-7B-Instruct"]))
    assert [layer.rope.kind for layer in got.layers if layer.rope] == ["default"] * 3 + ["yarn"]
    assert {layer.rope.theta for layer in got.layers if layer.rope} == {500_000.0}


def test_queries_grow_by_steps_of_the_original_context(tmp_path: Path) -> None:
    got = read(tmp_path, config("ministral3", rope_parameters=YARN_3))
    absent = config("ministral3", rope_parameters=None)
    assert got.query_growth == QueryGrowth(beta=0.1, step_tokens=16_384)
    assert read(tmp_path, absent).query_growth == got.query_growth
    at_T1 = QueryGrowth(beta=0.5, step_tokens=8).at(torch.tensor([0, 7, 8, 15, 16]))
    assert at_T1.flatten().tolist() == pytest.approx([1, 1, 1.346574, 1.346574, 1.549306])
    rope = {"rope_type": "default", "llama_4_scaling_beta": 0.1}
    refused(tmp_path, config("ministral3", rope_parameters=rope), "original_max_position")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}, ["layer_types", "mamba"]),
        ("granitemoehybrid", {"layer_types": None}, ["layer_types", "mamba", "state"]),
        ("granitemoehybrid", {"layer_types": [FULL] * 3}, ["layer_types", "2 layers"]),
        ("granitemoehybrid", {"layer_types": "attention"}, ["layer_types"]),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, ["sliding_window_pattern", "LLLG"]),
        ("exaone4", {"layer_types": [[FULL], FULL]}, ["layer_types"]),
        ("smollm3", {"no_rope_layers": [1]}, ["no_rope_layers"]),
        ("smollm3", {"no_rope_layer_interval": 0}, ["no_rope_layer_interval"]),
        ("gemma", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ("gemma", {"hidden_act": "relu"}, ["hidden_act"]),
        ("olmo3", {"rope_parameters": {"rope_type": "default"}}, ["rope_parameters"]),
    ],
)
def test_what_a_family_does_not_have_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], words: list[str]
) -> None:
    refused(tmp_path, config(family, **changes), *words)


@pytest.mark.parametrize("name", WRAPPED)
def test_of_a_multimodal_model_the_text_is_that_of_a_text_model(tmp_path: Path, name: str) -> None:
    wrapped = WRAPPED[name]
    got = read(tmp_path, wrapped.config())
    assert got == read(tmp_path, wrapped.shape.config())


def test_what_wraps_a_text_is_checked_too(tmp_path: Path) -> None:
    raw = WRAPPED["qwen3-vl"].config()
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    refused(tmp_path, raw | quantised, "quantization_config", "fp8")
    refused(tmp_path, WRAPPED["qwen2.5-vl"].config() | quantised, "quantization_config", "fp8")
    refused(tmp_path, WRAPPED["mistral3"].config() | quantised, "quantization_config", "fp8")
    refused(tmp_path, raw | {"architectures": ["Qwen3VLModel"]}, "architectures")
    refused(tmp_path, raw | {"text_config": [1]}, "text_config")
    text = raw["text_config"] | {"model_type": "qwen4"}
    refused(tmp_path, raw | {"text_config": text}, "text_config.model_type", "qwen4")


def test_older_ways_to_write_a_multimodal_model_are_read(tmp_path: Path) -> None:
    """A text that names its class, its whole model's type or none, and ties beside or within."""
    raw = WRAPPED["qwen2.5-vl-yarn-named-layers"].config()
    expected = read(tmp_path, raw)
    assert expected.tied_embeddings
    del raw["tie_word_embeddings"]
    raw |= {"hidden_size": 8192, "rope_scaling": {"type": "mrope"}}  # repeated, and not read
    for model_type in ("qwen2_5_vl", "qwen2_5_vl_text", None):
        text = raw["text_config"] | {"model_type": model_type, "tie_word_embeddings": True}
        text["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
        assert read(tmp_path, raw | {"text_config": text}) == expected


WHOLE = {
    "Mistral-Small-3.1-24B-Instruct-2503": 131_072,
    "Ministral-3-8B-Instruct-2512-BF16": 262_144,
    "Qwen2.5-VL-7B-Instruct": 128_000,
    "Qwen3-VL-4B-Instruct": 262_144,
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_text_of_published_multimodal_models_is_understood(tmp_path: Path, name: str) -> None:
    got = read(tmp_path, SERVED[name])
    assert (got.max_context_tokens, got.head_dim) == (WHOLE[name], 128)
    assert all(layer.rope == got.ropes[0] for layer in got.layers)
    assert (got.query_growth is None) == (name != "Ministral-3-8B-Instruct-2512-BF16")
