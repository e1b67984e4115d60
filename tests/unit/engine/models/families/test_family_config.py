"""What `config.json` means where families differ: ropes, windows, scales, experts, wrappers."""

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.configs import config, read, refused

from protocol.text.tokenizer import Tokenizer

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize(("original", "factor"), [(2048, 1.0), (1024, 4.0)])
def test_longrope_is_long_only_where_the_context_exceeds_the_original(
    tmp_path: Path, original: int, factor: float
) -> None:
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": original}
    (rope,) = read(tmp_path, config("phi3", **changes)).ropes
    assert rope.dim_factors == (factor,) * 8
    assert (rope.attention_factor > 1) == (original < 2048)


def test_a_phi_names_longrope_in_older_ways_too(tmp_path: Path) -> None:
    ropes = [
        read(tmp_path, config("phi3", rope_parameters=LONGROPE | {"rope_type": name})).ropes
        for name in ("longrope", "su", "yarn")
    ]
    assert ropes[0] == ropes[1] == ropes[2]


def test_a_partial_rotary_factor_is_for_families_that_have_it(tmp_path: Path) -> None:
    (rope,) = read(tmp_path, config("phi3", partial_rotary_factor=0.5)).ropes
    assert rope.share == 0.5
    refused(tmp_path, config("llama", partial_rotary_factor=0.5), "partial_rotary_factor")
    refused(tmp_path, config("phi3", partial_rotary_factor=0.05), "partial_rotary_factor")


def test_a_gemma_3_has_a_rope_for_each_kind_of_layer(tmp_path: Path) -> None:
    new = config("gemma3_text", head_dim=16, num_hidden_layers=6)
    new["rope_parameters"]["full_attention"] = {"rope_theta": 5e5, "type": "linear", "factor": 8.0}
    old = new | {"rope_parameters": None, "rope_theta": 5e5}
    old["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    got = read(tmp_path, new)
    assert [rope.theta for rope in got.ropes] == [1e4, 5e5]
    assert [rope.factor for rope in got.ropes] == [1.0, 8.0]
    assert [layer.rope.theta for layer in got.layers if layer.rope] == [1e4] * 5 + [5e5]
    assert read(tmp_path, old).layers == got.layers
    refused(tmp_path, new | {"rope_parameters": {"rope_type": "default"}}, "rope_parameters")


def test_a_gemma_without_layer_types_alternates_as_transformers_does(tmp_path: Path) -> None:
    two = config("gemma2", head_dim=16, num_hidden_layers=3, sliding_window=8)
    assert read(tmp_path, two).windows == (8, None, 8)
    three = config("gemma3_text", head_dim=16, num_hidden_layers=7, sliding_window=8)
    assert read(tmp_path, three).windows == (8, 8, 8, 8, 8, None, 8)
    third = read(tmp_path, three | {"sliding_window_pattern": 3})
    assert third.windows == (8, 8, None, 8, 8, None, 8)


def test_the_multipliers_and_caps_of_a_family_are_read(tmp_path: Path) -> None:
    gemma = read(tmp_path, config("gemma2", head_dim=16, query_pre_attn_scalar=64))
    assert (gemma.attention_scale, gemma.embedding_scale) == (0.125, 8.0)
    assert (gemma.attention_softcap, gemma.final_softcap) == (50.0, 30.0)
    granite = {"attention_multiplier": 0.5, "embedding_multiplier": 3, "residual_multiplier": 0.2}
    got = read(tmp_path, config("granite", **granite, logits_scaling=4))
    assert (got.attention_scale, got.embedding_scale) == (0.5, 3.0)
    assert (got.residual_scale, got.logits_divisor) == (0.2, 4.0)


def wrapped(**changes: Any) -> dict[str, Any]:
    text = config("gemma3_text", head_dim=16, **changes)
    del text["architectures"]
    return {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": text, "vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256,
    }  # fmt: skip


def test_of_a_multimodal_model_the_text_part_is_read(tmp_path: Path) -> None:
    got = read(tmp_path, wrapped())
    assert got == read(tmp_path, config("gemma3_text", head_dim=16))


def test_what_a_multimodal_model_leaves_out_means_what_transformers_makes_of_it(
    tmp_path: Path,
) -> None:
    raw = wrapped()
    raw["text_config"] = {"model_type": "gemma3_text", "hidden_size": 2560}
    got = read(tmp_path, raw)
    assert (got.vocab_size, got.num_heads, got.num_kv_heads) == (262_208, 8, 4)
    assert got.tied_embeddings


@pytest.mark.parametrize("named", [{}, {"eos_token_id": None}, {"eos_token_id": 7}])
def test_the_engine_and_the_tokenizer_read_the_same_of_a_multimodal_model(
    tmp_path: Path, named: dict[str, Any]
) -> None:
    """As Gemma 3 is published: neither vocabulary nor context is in `text_config`."""
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    raw = wrapped() | {"eos_token_id": [1, 106]}
    raw["text_config"] = {"model_type": "gemma3_text", "hidden_size": 2560, **named}
    got, tokenizer = read(tmp_path, raw), Tokenizer.load(tmp_path)
    assert got.vocab_size == tokenizer.vocab_size == 262_208
    assert got.max_context_tokens == tokenizer.max_context_tokens == 131_072
    expected = (7,) if named.get("eos_token_id") else (1, 106)
    assert tokenizer.eos_token_ids == expected


def test_a_text_alone_may_name_the_class_that_wrapped_it(tmp_path: Path) -> None:
    text = config("gemma3_text", head_dim=16)
    whole = text | {"architectures": ["Gemma3ForConditionalGeneration"]}
    assert read(tmp_path, whole) == read(tmp_path, text)


def test_an_error_in_the_text_part_says_where_it_is(tmp_path: Path) -> None:
    refused(tmp_path, wrapped(is_causal=False), "text_config.is_causal")
    refused(tmp_path, wrapped() | {"quantization_config": {"quant_method": "fp8"}}, "quantization")
    refused(tmp_path, wrapped() | {"text_config": None}, "text_config")


def test_what_surrounds_the_text_part_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    raw = wrapped() | {"audio_config": {"layers": 1}}
    assert read(tmp_path, raw).layers == read(tmp_path, wrapped()).layers
    assert [record.__dict__["keys"] for record in caplog.records] == ["audio_config"]


def test_a_text_part_without_a_type_is_of_its_wrapper(tmp_path: Path) -> None:
    raw = wrapped()
    del raw["text_config"]["model_type"]
    assert read(tmp_path, raw) == read(tmp_path, wrapped())


def test_the_number_of_experts_has_two_names(tmp_path: Path) -> None:
    old, new = config("qwen3_moe"), config("qwen3_moe")
    new["num_local_experts"] = new.pop("num_experts")
    one, other = (read(tmp_path, raw).mixture for raw in (old, new))
    assert one == other is not None
    del old["num_experts"]
    refused(tmp_path, old, "num_experts", "missing")


def test_steps_and_named_layers_place_the_experts(tmp_path: Path) -> None:
    raw = config("qwen2_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    sparse = [layer.sparse for layer in read(tmp_path, raw).layers]
    assert sparse == [False, True, False, False, False, True]
    assert all(layer.sparse for layer in read(tmp_path, config("mixtral")).layers)


@pytest.mark.parametrize(
    ("family", "changes", "renormalise"),
    [
        ("mixtral", {}, True),
        ("qwen3_moe", {}, False),
        ("qwen3_moe", {"norm_topk_prob": True}, True),
        ("gpt_oss", {}, False),
    ],
)
def test_whether_chosen_experts_share_all_the_weight(
    tmp_path: Path, family: str, changes: dict[str, Any], renormalise: bool
) -> None:
    mixture = read(tmp_path, config(family, head_dim=16, **changes)).mixture
    assert mixture is not None
    assert mixture.renormalise == renormalise


def test_a_qwen_moe_window_is_placed_as_transformers_places_it(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 5}
    two = config("qwen2_moe", max_window_layers=3, **window)
    assert read(tmp_path, two).windows == (8, None, 8, None, None)
    three = config("qwen3_moe", max_window_layers=3, **window)
    assert read(tmp_path, three).windows == (8,) * 5
    off = {"use_sliding_window": False, "sliding_window": 0}  # as transformers 5 saves it
    assert read(tmp_path, two | off).windows == (None,) * 5


def test_an_absent_rope_of_gpt_oss_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    raw = config("gpt_oss", head_dim=64, hidden_size=256)
    null = read(tmp_path, raw | {"rope_parameters": None}).ropes
    del raw["rope_parameters"]
    (rope,) = read(tmp_path, raw).ropes
    assert null == (rope,)
    assert (rope.kind, rope.theta, rope.factor) == ("yarn", 150_000.0, 32.0)
    assert not rope.truncate


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"hidden_activation": "gelu"}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"layer_types": ["chunked_attention", "full_attention"]}),
        ("cohere", {"sliding_window": 16}),
        ("llama", {"logit_scale": 0.5}),
        ("granite", {"logits_scaling": "eight"}),
        ("mixtral", {"num_experts_per_tok": 5}),
        ("qwen3_moe", {"mlp_only_layers": "none"}),
        ("qwen3_moe", {"quantization_config": {"quant_method": "mxfp4"}}),
        ("gpt_oss", {"swiglu_limit": 5.0}),
        ("gpt_oss", {"swiglu_alpha": 1.0}),
        ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}),
    ],
)
def test_an_option_a_family_does_not_have_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    refused(tmp_path, config(family, head_dim=16, **changes), *changes)


PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "experts_per_token": 4, "initial_context_length": 4096, "output_router_logits": False,
        "router_aux_loss_coef": 0.9, "swiglu_limit": 7.0, "pad_token_id": 199_999,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
            "quant_method": "mxfp4",
        },
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
            "original_max_position_embeddings": 4096, "truncate": False,
        },
        "rope_theta": 150_000, "num_local_experts": 128, "rope_parameters": None,
    },
    "phi3": {
        "attention_bias": False, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
        "mlp_bias": False, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0, "rope_parameters": None, "rope_theta": 10_000.0,
        "rope_scaling": {
            "long_factor": [4.0] * 6, "short_factor": [1.0] * 6, "type": "longrope",
        },
        "sliding_window": 262_144,
    },
    "gemma2": {
        "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    },
    "gemma3_text": {
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "sliding_window": 512,
        "final_logit_softcapping": None, "rope_local_base_freq": 10_000, "rope_scaling": None,
        "rope_parameters": None, "rope_theta": 1_000_000, "sliding_window_pattern": 6,
    },
    "qwen3_moe": {
        "decoder_sparse_step": 1, "max_window_layers": 48, "mlp_only_layers": [],
        "norm_topk_prob": True, "output_router_logits": False, "rope_scaling": None,
        "router_aux_loss_coef": 0.001, "sliding_window": None, "use_sliding_window": False,
    },
    "qwen2_moe": {
        "max_window_layers": 21, "norm_topk_prob": False, "sliding_window": 32_768,
        "use_sliding_window": False, "shared_expert_intermediate_size": 5632,
    },
    "mixtral": {"router_aux_loss_coef": 0.02, "sliding_window": None, "attention_dropout": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_keys_of_published_checkpoints_are_understood(tmp_path: Path, family: str) -> None:
    """As GPT-OSS 120B, Phi-4-mini, Gemma 2 2B, Gemma 3 1B, Qwen3-30B-A3B, Qwen1.5-MoE-A2.7B and
    Mixtral 8x7B have them, beside sizes."""
    got = read(tmp_path, config(family, **PUBLISHED[family]))
    assert got.family.model_type == family
