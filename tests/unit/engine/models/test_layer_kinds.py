"""Which layers turn, slide, have experts or keep a state, and what the text of a multimodal model
is: by the keys that published checkpoints have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import config, read, refused
from support.family_shapes import FULL, SLIDE
from support.wrapped_shapes import WRAPPED

from engine.models.rope import QueryGrowth

YARN_3 = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16_384,
    "rope_theta": 1_000_000.0, "rope_type": "yarn", "type": "yarn",
}  # fmt: skip
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM3-3B": ("smollm3", {
        "num_hidden_layers": 36, "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4,
        "layer_types": [FULL] * 36, "max_window_layers": 28, "sliding_window": None,
        "use_sliding_window": False, "rope_theta": 5_000_000.0, "rope_scaling": None,
        "rope_parameters": None, "mlp_bias": False,
    }),
    "Olmo-3-7B-Instruct": ("olmo3", {
        "num_hidden_layers": 32, "layer_types": [SLIDE, SLIDE, SLIDE, FULL] * 8,
        "rope_parameters": None, "rope_theta": 500_000, "sliding_window": 4096,
        "max_position_embeddings": 65_536, "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
            "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    }),
    "EXAONE-4.0-32B": ("exaone4", {
        "num_hidden_layers": 64, "layer_types": [SLIDE, SLIDE, SLIDE, FULL] * 16,
        "sliding_window": 4096, "sliding_window_pattern": "LLLG", "rope_theta": 1_000_000,
        "rope_parameters": None, "max_position_embeddings": 131_072, "rope_scaling": {
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    }),
    "Seed-OSS-36B-Instruct": ("seed_oss", {
        "attention_bias": True, "attention_dropout": 0.1, "attention_out_bias": False,
        "mlp_bias": False, "residual_dropout": 0.1, "rope_parameters": None, "head_dim": 128,
        "rope_scaling": {"rope_type": "default"}, "rope_theta": 10_000_000.0,
    }),
    "gemma-2b": ("gemma", {
        "hidden_act": "gelu", "hidden_activation": None, "head_dim": 256, "rope_scaling": None,
        "use_bidirectional_attention": None,
    }),
    "granite-3.0-1b-a400m": ("granitemoe", {
        "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "logits_scaling": 6.0,
        "residual_multiplier": 0.22, "num_local_experts": 32, "num_experts_per_tok": 8,
        "router_aux_loss_coef": 0.0, "rope_theta": 10_000, "rope_scaling": None,
    }),
    "granite-4.0-micro": ("granitemoehybrid", {
        "attention_multiplier": 0.015625, "embedding_multiplier": 12, "logits_scaling": 8,
        "residual_multiplier": 0.22, "num_hidden_layers": 40, "layer_types": ["attention"] * 40,
        "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 64,
        "mamba_d_state": 256, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 64,
        "mamba_proj_bias": False, "num_experts_per_tok": 0, "num_local_experts": 0,
        "position_embedding_type": "rope", "shared_intermediate_size": 8192,
        "output_router_logits": False, "rope_theta": 10_000_000, "rope_scaling": None,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_keys_of_published_checkpoints_are_understood(tmp_path: Path, name: str) -> None:
    family, keys = PUBLISHED[name]
    assert read(tmp_path, config(family, **keys)).family.model_type == family


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
    keys = PUBLISHED["Olmo-3-7B-Instruct"][1] | {"num_hidden_layers": 4}
    got = read(tmp_path, config("olmo3", **keys | {"layer_types": [SLIDE, SLIDE, SLIDE, FULL]}))
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
