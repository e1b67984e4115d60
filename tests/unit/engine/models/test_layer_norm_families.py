"""What the keys of GLM, Cohere, StarCoder2, StableLM and Phi-3.5-MoE mean."""

from pathlib import Path
from typing import Any

import pytest
from support.configs import config, read, refused
from support.family_shapes import FULL, MSCALES, SLIDE

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "glm-4-9b-chat-hf": ("glm", {
        "attention_bias": True, "head_dim": 128, "num_key_value_heads": 2, "rope_theta": 10_000.0,
        "rope_parameters": None, "rms_norm_eps": 1.5625e-07,
    }),
    "GLM-4-32B-0414": ("glm4", {
        "attention_bias": False, "head_dim": 128, "num_attention_heads": 48,
        "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "rope_theta": 10_000.0,
        "rope_parameters": None, "rms_norm_eps": 1e-05,
    }),
    "c4ai-command-r-plus": ("cohere", {
        "attention_bias": False, "layer_norm_eps": 1e-05, "logit_scale": 0.8333333333333334,
        "rope_theta": 75_000_000.0, "rope_parameters": None, "use_qk_norm": True,
        "num_attention_heads": 96, "num_key_value_heads": 8, "hidden_size": 12_288,
    }),
    "c4ai-command-r7b-12-2024": ("cohere2", {
        "attention_bias": False, "cache_implementation": "hybrid", "head_dim": 128,
        "layer_norm_eps": 1e-05, "logit_scale": 0.25, "position_embedding_type": "rope_gptj",
        "rope_scaling": None, "rope_theta": 50_000, "rope_parameters": None,
        "sliding_window": 4096, "sliding_window_pattern": 4, "use_qk_norm": False,
    }),
    "starcoder2-7b": ("starcoder2", {
        "embedding_dropout": 0.0, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-05,
        "residual_dropout": 0.0, "rope_theta": 1_000_000, "rope_parameters": None,
        "sliding_window": 4096, "use_bias": True, "num_attention_heads": 36, "hidden_size": 4608,
        "num_key_value_heads": 4, "max_position_embeddings": 16_384,
    }),
    "stablelm-2-12b": ("stablelm", {
        "hidden_dropout": 0.0, "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.25,
        "qk_layernorm": True, "rope_scaling": None, "rope_theta": 10_000, "rope_parameters": None,
        "use_parallel_residual": True, "use_qkv_bias": False,
    }),
    "Phi-3.5-MoE-instruct": ("phimoe", {
        "attention_bias": True, "input_jitter_noise": 0.01, "lm_head_bias": True,
        "num_experts_per_tok": 2, "num_local_experts": 16, "rms_norm_eps": 1e-05,
        "router_aux_loss_coef": 0.0, "router_jitter_noise": 0.01, "rope_theta": 10_000.0,
        "rope_parameters": None, "sliding_window": 131_072, "max_position_embeddings": 131_072,
        "rope_scaling": {
            "long_factor": [2.0] * 8, "short_factor": [1.0] * 8, "type": "longrope",
            "long_mscale": 1.243163121016122, "short_mscale": 1.243163121016122,
            "original_max_position_embeddings": 4096,
        },
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_keys_of_published_checkpoints_are_understood(tmp_path: Path, name: str) -> None:
    family, keys = PUBLISHED[name]
    assert read(tmp_path, config(family, **keys)).family.model_type == family


def test_an_absent_partial_rotary_factor_is_the_familys(tmp_path: Path) -> None:
    shares = {
        family: read(tmp_path, config(family, head_dim=16)).ropes[0].share
        for family in ("glm", "glm4", "stablelm", "starcoder2")
    }
    assert shares == {"glm": 0.5, "glm4": 0.5, "stablelm": 0.25, "starcoder2": 1.0}
    at_its_place = {"rope_type": "default", "partial_rotary_factor": 0.75}
    raw = config("glm", head_dim=16, rope_parameters=at_its_place, partial_rotary_factor=0.5)
    assert read(tmp_path, raw).ropes[0].share == 0.75


def test_layers_of_cohere_2_turn_where_they_have_a_window(tmp_path: Path) -> None:
    got = read(tmp_path, config("cohere2", num_hidden_layers=5, sliding_window=8))
    assert got.windows == (8, 8, 8, None, 8)
    assert [layer.rope is not None for layer in got.layers] == [True, True, True, False, True]
    named = config("cohere2", layer_types=[FULL, SLIDE], sliding_window=8)
    assert read(tmp_path, named).windows == (None, 8)
    wide = read(tmp_path, config("cohere2", layer_types=[FULL, SLIDE], sliding_window=10**6))
    assert wide.windows == (None, None)
    assert [layer.rope is not None for layer in wide.layers] == [False, True]


def test_logits_of_cohere_are_multiplied(tmp_path: Path) -> None:
    assert read(tmp_path, config("cohere")).logits_divisor == 16
    assert read(tmp_path, config("cohere2", logit_scale=0.25)).logits_divisor == 4


def test_norms_of_heads_and_a_parallel_layer_are_as_a_key_says(tmp_path: Path) -> None:
    assert read(tmp_path, config("cohere")).qk_norm == "none"
    assert read(tmp_path, config("cohere", use_qk_norm=True)).qk_norm == "layer"
    plain = read(tmp_path, config("stablelm"))
    assert (plain.qk_norm, plain.parallel) == ("none", False)
    assert plain.norms.before_mlp == "post_attention_layernorm"
    changed = read(tmp_path, config("stablelm", qk_layernorm=True, use_parallel_residual=True))
    assert (changed.qk_norm, changed.parallel) == ("layers", True)
    assert changed.norms.before_mlp is None


@pytest.mark.parametrize(("original", "factor", "scale"), [(2048, 1.0, 1.1), (64, 4.0, 1.3)])
def test_the_scales_of_a_phi_moe_go_with_its_factors(
    tmp_path: Path, original: int, factor: float, scale: float
) -> None:
    """The long ones where the context exceeds the original, as in its authors' code and vLLM;
    transformers 5 takes the long scale with the short factors."""
    rope = MSCALES | {"original_max_position_embeddings": original}
    (got,) = read(tmp_path, config("phimoe", rope_parameters=rope)).ropes
    assert got.dim_factors == tuple(rope["short_factor"] if factor == 1 else rope["long_factor"])
    assert got.attention_factor == scale


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("cohere", {"logit_scale": 0.0}, ["logit_scale", "positive"]),
        ("cohere", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ("cohere2", {"layer_types": [SLIDE, "chunked_attention"]}, ["layer_types"]),
        ("starcoder2", {"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ("stablelm", {"use_parallel_residual": 1}, ["use_parallel_residual"]),
        ("phimoe", {"num_experts_per_tok": 1}, ["num_experts_per_tok", "2"]),
    ],
)
def test_what_a_family_does_not_have_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], words: list[str]
) -> None:
    refused(tmp_path, config(family, **changes), *words)
