from pathlib import Path
from typing import Any

import pytest
from support.configs import config, read, refused

from engine.models.config import read_config
from protocol.errors import CheckpointError


def test_heads_default_to_the_hidden_size_over_their_number(tmp_path: Path) -> None:
    raw = config()
    del raw["num_key_value_heads"]
    got = read(tmp_path, raw)
    assert (got.head_dim, got.num_kv_heads) == (16, 4)


def test_the_kv_layout_follows_the_heads(tmp_path: Path) -> None:
    (layout,) = read(tmp_path, config()).kv_layouts(block_tokens=16, dtype="bfloat16")
    assert layout.shape == (2, 2, 2, 16, 16)


def test_both_spellings_of_a_rope_mean_the_same(tmp_path: Path) -> None:
    rope = {"factor": 2.0}
    old = config(rope_scaling={"type": "linear", **rope}, rope_theta=5e5)
    del old["rope_parameters"]
    new = config(rope_parameters={"rope_type": "linear", "rope_theta": 5e5, **rope})
    assert read(tmp_path, old).ropes == read(tmp_path, new).ropes


def test_yarn_brings_its_attention_factor(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    got = read(tmp_path, config(rope_parameters=yarn))
    assert got.ropes[0].attention_factor == pytest.approx(1.1386, abs=1e-4)


@pytest.mark.parametrize(
    ("rope", "word"),
    [
        ({"rope_type": "mystery", "factor": 2.0}, "mystery"),
        ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}, "short_factor"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}, "alpha"),
        ({"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "yarn", "factor": "four"}, "factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_a_rope_not_understood_is_refused_by_name(
    tmp_path: Path, rope: dict[str, Any], word: str
) -> None:
    refused(tmp_path, config(rope_parameters=rope), word)


def test_a_mistral_without_a_window_key_has_the_window_transformers_gives_it(
    tmp_path: Path,
) -> None:
    raw = config("mistral", max_position_embeddings=8192)
    del raw["sliding_window"]
    assert read(tmp_path, raw).windows == (4096, 4096)
    assert read(tmp_path, raw | {"sliding_window": None}).windows == (None, None)


@pytest.mark.parametrize(("window", "read_as"), [(2047, 2047), (2048, None), (4096, None)])
def test_a_window_that_reaches_the_whole_context_is_none(
    tmp_path: Path, window: int, read_as: int | None
) -> None:
    raw = config("phi3", max_position_embeddings=2048, sliding_window=window)
    assert read(tmp_path, raw).windows == (read_as, read_as)


def test_a_qwen_window_holds_only_when_it_is_switched_on(tmp_path: Path) -> None:
    window = {"sliding_window": 32, "max_window_layers": 1}
    assert read(tmp_path, config("qwen2", use_sliding_window=False, **window)).windows == (
        None,
        None,
    )
    assert read(tmp_path, config("qwen2", use_sliding_window=True, **window)).windows == (None, 32)


def test_layer_types_place_the_window(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    on = config("qwen3", use_sliding_window=True, sliding_window=8, layer_types=kinds)
    assert read(tmp_path, on).windows == (8, None)
    refused(tmp_path, config("qwen3", use_sliding_window=False, layer_types=kinds), "layer_types")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"sliding_window": 5}, "sliding_window"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"max_position_embeddings": 100.5}, "max_position_embeddings"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings"),
        ({"rope_theta": float("nan"), "rope_parameters": None}, "rope_theta"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    refused(tmp_path, config(**changes), word)


def test_keys_that_change_no_logits_are_accepted(tmp_path: Path) -> None:
    read(tmp_path, config(attention_dropout=0.1, use_cache=True, _name_or_path="x"))


REFUSED: tuple[dict[str, Any], ...] = (
    {"dual_chunk_attention_config": {"chunk_size": 262144}},
    {"quantization": {"bits": 4, "group_size": 64}},
    {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
    {"compression_config": {"format": "int-quantized"}},
    {"attn_logit_softcapping": 50.0},
    {"final_logit_softcapping": 30.0},
    {"sliding_window": 5},
    {"attention_chunk_size": 8192},
    {"attn_temperature_tuning": True},
    {"logit_scale": 0.0625},
    {"partial_rotary_factor": 0.5},
    {"is_causal": False},
    {"use_bidirectional_attention": True},
    {"interleaved_sliding_window": [4096, None]},
    {"per_layer_config": {"0": {"sliding_window": 5}}},
)


@pytest.mark.parametrize("changes", REFUSED, ids=lambda changes: next(iter(changes)))
def test_what_changes_results_and_is_not_read_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    refused(tmp_path, config(**changes), next(iter(changes)), "not supported for llama")


IGNORED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cohere", {"position_embedding_type": "rope_gptj"}),
    ("stablelm", {"rotary_pct": 0.25, "partial_rotary_factor": 0.25}),
    ("qwen3_moe", {"shared_expert_intermediate_size": 512}),
    ("glm", {"rope_ratio": 500}),
    ("olmo2", {"clip_qkv": 8.0}),
    ("phi3", {"full_attn_mod": 2}),
    ("gpt_oss", {"hidden_act": "gelu_pytorch_tanh"}),
    ("granitemoe", {"num_experts": 8}),
    ("mistral", {"attention_bias": True}),
    ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("llama", {"use_bias": True, "bias": True, "attention_out_bias": True, "lm_head_bias": True}),
    ("llama", {"n_group": 4, "topk_group": 2, "num_experts": 8, "num_local_experts": 8}),
    ("llama", {"rotary_dim": 8, "position_embedding_type": "absolute", "qk_layernorm": True}),
    ("llama", {"residual_multiplier": 0.5, "no_rope_layers": [1, 0], "is_decoder": True}),
)


@pytest.mark.parametrize(("family", "changes"), IGNORED, ids=str)
def test_a_key_of_another_architecture_is_ignored_as_in_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    assert read(tmp_path, config(family, **changes)) == read(tmp_path, config(family))


@pytest.mark.parametrize(
    ("family", "key", "meant"),
    [
        ("gemma3_text", "rope_local_base_freq", 10_000.0),
        ("mixtral", "rms_norm_eps", 1e-5),
        ("cohere", "logit_scale", 0.0625),
        ("gemma3_text", "vocab_size", 262_208),
        ("smollm3", "no_rope_layer_interval", 4),
        ("qwen2_moe", "qkv_bias", True),
    ],
)
def test_a_null_is_an_absent_key(tmp_path: Path, family: str, key: str, meant: object) -> None:
    raw = config(family, head_dim=16)
    assert read(tmp_path, raw | {key: None}) == read(tmp_path, raw | {key: meant})


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "", {}, []])
def test_a_switch_that_is_off_refuses_nothing(tmp_path: Path, off: object) -> None:
    keys = ("dual_chunk_attention_config", "quantization_config", "sliding_window", "num_experts")
    read(tmp_path, config(**dict.fromkeys(keys, off)))


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_scale": None},
        {"logit_scale": 1.0},
        {"partial_rotary_factor": 1},
        {"is_causal": True},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"sliding_window": 2048},  # as far as the context
    ],
    ids=str,
)
def test_a_value_that_changes_nothing_refuses_nothing(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    read(tmp_path, config(**changes))


def test_a_qwen2_has_its_biases_whatever_the_key_says(tmp_path: Path) -> None:
    assert read(tmp_path, config("qwen2", attention_bias=True)).qkv_bias


def test_keys_that_nobody_reads_are_told_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rope = {"rope_type": "linear", "factor": 2.0, "mystery": 1}
    changes = {"new_key": 0, "is_llama_config": True, "use_qk_norm": True, "pretraining_tp": 2}
    got = read(tmp_path, config(**changes, logit_scale=1.0, rope_parameters=rope))
    (told,) = [record for record in caplog.records if "ignored" in record.message]
    assert told.__dict__["keys"] == "is_llama_config, new_key, rope.mystery, use_qk_norm"
    assert got.layers == read(tmp_path, config(rope_parameters=rope)).layers
    assert len([record for record in caplog.records if "ignored" in record.message]) == 2


@pytest.mark.parametrize(
    "named",
    [
        None,
        [],
        ["LlamaForCausalLM", "LlamaForSequenceClassification"],
        ["LLaMAForCausalLM"],
        ["LlamaModel"],
    ],
)
def test_any_of_several_architectures_may_be_the_one(tmp_path: Path, named: object) -> None:
    read(tmp_path, config(architectures=named))


def test_a_model_without_a_type_is_what_its_architecture_says(tmp_path: Path) -> None:
    raw = config("qwen2")
    del raw["model_type"]
    assert read(tmp_path, raw).family.model_type == "qwen2"
    refused(tmp_path, raw | {"architectures": ["GPT2LMHeadModel"]}, "model_type", "None")


def test_whole_numbers_may_be_written_as_floats(tmp_path: Path) -> None:
    raw = config(max_position_embeddings=2048.0, num_attention_heads=4.0)
    got = read(tmp_path, raw)
    assert (got.max_context_tokens, got.num_heads) == (2048, 4)
    refused(tmp_path, config(hidden_size=64.5), "hidden_size")


@pytest.mark.parametrize("divisor", [0, 0.0, -1.0])
def test_logits_are_divided_by_a_positive_number_only(tmp_path: Path, divisor: float) -> None:
    refused(tmp_path, config("granite", logits_scaling=divisor), "logits_scaling", "positive")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 2147483648),
        ("num_hidden_layers", 1025.0),
        ("num_attention_heads", 10**9),
        ("num_key_value_heads", 10**9),
        ("head_dim", 1 << 30),
        ("hidden_size", 1 << 30),
        ("vocab_size", 1 << 30),
        ("max_position_embeddings", 10**12),
        ("max_position_embeddings", 10**400),
    ],
)
def test_a_size_beyond_any_model_is_refused_before_anything_is_made_of_it(
    tmp_path: Path, key: str, value: float
) -> None:
    refused(tmp_path, config(**{key: value}), key)


def test_experts_beyond_any_model_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, config("mixtral", num_local_experts=10**9), "num_local_experts", "4096")


def test_a_list_of_millions_is_refused_in_a_short_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="architectures") as caught:
        read(tmp_path, config("qwen3", architectures=["x" * 50] * 100_000))
    assert len(str(caught.value)) < 2000
    refused(tmp_path, config("qwen3", layer_types=["full_attention"] * 2_000_000), "layer_types")


def test_a_rope_that_reaches_without_end_is_refused(tmp_path: Path) -> None:
    for factor in (1e9, 1e300):
        rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 512}
        refused(tmp_path, config(rope_parameters=rope), "factor")
