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


def test_an_end_of_text_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, config(eos_token_id=512), "eos_token_id", "512")


@pytest.mark.parametrize("generation", [{}, {"eos_token_id": None}])
def test_a_generation_config_that_names_no_end_of_text_hides_none(
    tmp_path: Path, generation: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"/config\.json: eos_token_id 512 is not"):
        read(tmp_path, config(eos_token_id=512), generation)


def test_the_ends_of_text_of_a_generation_config_are_held_against_the_vocabulary(
    tmp_path: Path,
) -> None:
    """Instead of those of `config.json`."""
    read(tmp_path, config(eos_token_id=512), {"eos_token_id": [3, 5, 3]})
    read(tmp_path, config(eos_token_id=512), {"eos_token_id": 9})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id 512 is not"):
        read(tmp_path, config(eos_token_id=7), {"eos_token_id": [3, 512]})


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
        ({"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
        ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}, "short_factor"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "mystery": 1}, "mystery"),
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
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"new_key": 0}, "new_key"),
        ({"new_key": 0.0}, "new_key"),
        ({"new_key": ""}, "new_key"),
        ({"_new_key": 1}, "_new_key"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    refused(tmp_path, config(**changes), word)


def test_keys_that_change_no_logits_are_accepted(tmp_path: Path) -> None:
    read(tmp_path, config(attention_dropout=0.1, use_cache=True, _name_or_path="x"))


@pytest.mark.parametrize("off", [None, False, {}, []])
def test_a_key_not_understood_that_is_off_is_accepted(tmp_path: Path, off: object) -> None:
    read(tmp_path, config(new_key=off))


@pytest.mark.parametrize("divisor", [0, 0.0, -1.0])
def test_logits_are_divided_by_a_positive_number_only(tmp_path: Path, divisor: float) -> None:
    refused(tmp_path, config("granite", logits_scaling=divisor), "logits_scaling", "positive")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not JSON"):
        read_config(tmp_path)
